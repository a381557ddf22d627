"""What connectors are made of: records, partition events, sources and sinks."""

from __future__ import annotations

from collections.abc import AsyncIterable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from velo._core import Record

__all__ = [
    "Assigned",
    "Bad",
    "Batch",
    "Headers",
    "Lost",
    "Partition",
    "Position",
    "Record",
    "Revoked",
    "Sink",
    "Source",
    "To",
    "addressed",
    "record_key",
    "record_of",
    "to",
    "traced",
]

Partition = Hashable
"""The name of a part of a source whose records have an order: `("payments", 3)` for Kafka."""

Position = Any
"""Where a record lies in its partition: an offset, a sequence number, an id."""

Headers = tuple[tuple[str, bytes], ...]
"""The headers of a record, in order; a name may come more than once."""


class Bad(NamedTuple):
    """A record that cannot be decoded: it goes to the dead letters, and counts as handled.

    Attributes:
        record: The record; `value` is what came, as bytes.
        error: Why it is no event.

    """

    record: Record
    error: Exception


def record_of(item: Record | Bad) -> Record:
    """Give the record of an item of a batch, also of what is no event."""
    return item.record if isinstance(item, Bad) else item


@dataclass(frozen=True)
class Assigned:
    """The source reads these partitions from here on."""

    partitions: Sequence[Partition]


@dataclass(frozen=True)
class Revoked:
    """The source gives these partitions away.

    Once the next item is asked for, they may be another program's: until then their records can be
    handled and committed.
    """

    partitions: Sequence[Partition]


@dataclass(frozen=True)
class Lost:
    """These partitions are another program's already: nothing of them can be committed any more."""

    partitions: Sequence[Partition]


Batch = Sequence[Record | Bad]
"""Records in the order of their positions; of one partition or of several."""


@runtime_checkable
class Source(Protocol):
    """A source of records: an async iterable of batches and partition events.

    A batch may be empty, which tells that the source is alive. The iteration ends where the source
    does. An error that the source cannot mend raises.

    A source may have more methods; each is used where it exists:

    - `pause(partitions)` and `resume(partitions)`: stop and go on reading some partitions; calls
      return at once. A record that was read before `pause` may still come.
    - `async close()`: let go of everything. Called once, after the last `commit`.
    - `lag() -> Mapping[Partition, int]`: how many records each partition holds beyond the last one
      that was read, as far as it is known without asking the server.
    - `stop()`: read no more; the iteration ends soon. Called at the first signal. Without it, the
      iteration is closed instead.
    - `name`: a short name for messages and metrics, without secrets: `kafka payments`.

    For checkpoints (partitions and positions come back equal, and with the same types):

    - `seek(positions)`: begin behind these positions. Partitions that are not named begin where
      `start` says. Called once, before the iteration, at each start with a checkpoint; at the first
      one with no positions. The source reads all its partitions, also those that are added later,
      and shares them with no other program. A position that is no longer there raises
      `PositionLost` while reading. A source that gives every record again, in the same order and at
      the same position, has this method.
    - `remember(positions)`: give the records at these positions, several for each partition, the
      same positions again. They lie behind those of `seek`; the checkpoint has absorbed them, and
      velo leaves them out. Called once, after `seek`. Only a source whose positions depend on when
      it reads needs it.
    A source without `seek` gets an event journal with a checkpoint: records are written to it, then
    committed, then handled; at a restart they come from there. For such a source:

    - `stable`: True where a record that comes again has the position that it had, and no other
      record ever has it. Then what is in the journal is left out when it comes again. Otherwise
      each delivery counts as an event of its own.

    For checkpoints of which each partition has one that moves with it, as of a group of Kafka:

    - `shares`: True where this program gets some of the partitions, and other programs the others.
    - `share()`: called once, in place of `seek`: an assigned partition is read only from its call
      of `place` on.
    - `place(partition, position)`: read this one behind this position; with None, where `start`
      says. It returns at once. For a partition that was taken away meanwhile it does nothing.
    - `async topic_of(partition) -> tuple[str, int]`: the topic of a partition that was assigned,
      and how many partitions that has. With it, velo warns where partitions were added, so that
      producers send some keys to other partitions than before.
    - `async reassign(partition) -> bool`: ask the group whether the partition is still this
      program's. If so, read no more of it until the next call of `place`, give `Assigned` for it
      once more, behind all of its records that were read, and return True. Called where another
      program has taken over the checkpoint of the partition, which may have been late. Without it,
      the run then ends, unless the partition is given away soon.
    """

    def __aiter__(self) -> AsyncIterable[Batch | Assigned | Revoked | Lost]:
        """Begin to read."""

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Note that all records up to and including these positions are handled.

        Called one at a time, with each partition's highest position so far. Records between two
        calls may be handled in any order; a position is committed when all before it are handled.
        """


@runtime_checkable
class Sink(Protocol):
    """What takes results. Its methods are called one at a time, in one event loop.

    A sink may have `async close()`, and a `name`, as a source.

    For checkpoints, one that can take back what it was given has these two:

    - `async mark() -> Any`: how far it has durable results: a value of velo's codec. None: it
      cannot say, and takes nothing back. Called after `flush`, with no `write` in between; at a
      first start also before the first `write`, so that a crash before the first tick leaves
      nothing behind.
    - `async rewind(mark)`: take back all that came after `mark`. Called once, before the first
      `write`; with None at a first start, when there is nothing to take back. Raises `PositionLost`
      where the sink does not have what the mark tells of.

    One with a commit point of its own has these two instead:

    - `async begin(name, epoch) -> int`: from here on, results show at `commit` only. Drops what an
      earlier program of this name has written and not committed, and shuts that program out, so
      that its next `commit` raises `Superseded`. Returns the last epoch that was committed under
      this name; 0: none. `epoch` is the last one that the checkpoint has, or 0 at a first start.
      Raises `PositionLost` where the sink has forgotten the name.
    - `async commit(epoch, positions)`: show the results that were written since the last `commit`,
      and keep `epoch`, all or nothing. `positions` are those of the source, for people to look at.
      Called after `flush`, also without results.

    One that can be had several times has this method, for partitions that move with their states:

    - `for_shard(name) -> Sink`: a sink with `begin` and `commit` for the results of one partition.
      It is closed when the partition goes. `name` tells it from others, in messages.
    """

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Take results with their keys, in order. Waits where the sink is behind.

        A result may be a `To`, which says where it goes.

        Raises:
            TypeError: When one of them cannot be encoded; then none of them is written.
            ValueError: The same.

        """

    async def flush(self) -> None:
        """Return once all results that were written so far are durable.

        It may be called while `write` takes other results.

        Raises:
            Exception: When one of them is not: its position is not committed.

        """


class To:
    """A result with an address; see `to`."""

    __slots__ = ("headers", "key", "topic", "value")

    def __init__(
        self, value: Any, topic: str | None = None, key: Any = None, headers: Headers = ()
    ) -> None:
        self.value = value
        self.topic = topic
        self.key = key
        self.headers = headers

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what it is made of."""
        return To, (self.value, self.topic, self.key, self.headers)

    def __repr__(self) -> str:
        """All of it."""
        return f"to({self.value!r}, topic={self.topic!r}, key={self.key!r})"


def to(
    value: Any,
    *,
    topic: str | None = None,
    key: Any = None,
    headers: Mapping[str, bytes | str] | Iterable[tuple[str, bytes | str]] = (),
) -> To:
    """Say where a result goes: `yield connect.to(alert, topic="alerts")`.

    Args:
        value: The result.
        topic: The topic, stream, subject, routing key or path. None: the one of the sink.
        key: The key of the result for the broker. None: the key of its stream.
        headers: Headers, by name or as pairs.

    Raises:
        TypeError: When a header is no text or bytes, or its name is no text.

    """
    if not headers:
        return To(value, topic, key)
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return To(value, topic, key, tuple(map(_header, pairs)))


def _header(pair: Any) -> tuple[str, bytes]:
    if isinstance(pair, tuple | list) and len(pair) == 2:
        name, value = pair
        if isinstance(name, str):
            if isinstance(value, str):
                return name, value.encode()
            if isinstance(value, bytes):
                return name, value
    raise TypeError(f'a header is a name and text or bytes, as `("trace", "1")`, not {pair!r}')


def addressed(key: Any, result: Any) -> To:
    """Give a result of a key as a `To`, with the key in it."""
    if type(result) is not To:
        return To(result, None, key)
    if result.key is None:
        return To(result.value, result.topic, key, result.headers)
    return result


_TRACE = frozenset(("traceparent", "tracestate"))


def traced(result: Any, trace: Headers) -> To:
    """Give a result the trace context of its record, unless it has one of its own."""
    if type(result) is not To:
        return To(result, None, None, trace)
    if any(name.lower() in _TRACE for name, _ in result.headers):
        return result
    return To(result.value, result.topic, result.key, (*result.headers, *trace))


def record_key(_event: Any) -> Any:
    """Stand for the broker's own key: `fn.keyed(source, key=connect.record_key)`."""
    raise TypeError(
        "`connect.record_key` is the key of a record: use it with a source of `velo.connect`"
    )
