"""A source that gives each record once, as one that can be read again: by an event journal.

```
source ──> read ──> journal, on the disk ──> acknowledged ──> ready ──> given
                       │         └── a restart begins here ──────────────┘
                       └── files that a tick has absorbed are removed
```

Records are acknowledged as soon as they are in the journal: what the server keeps back depends on
the disk, and neither on ticks nor on the function.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._api.gates import misfit
from velo._api.patience import closed, waiting_for
from velo._checkpoint.event_journal import DiskFull, EventJournal, frames_in
from velo._diagnostics.failpoints import reached
from velo._diagnostics.source_figures import name_of
from velo._function.pickle_imports import imports_of
from velo.connect.model import Assigned, Bad, Batch, Headers, Lost, Record, Revoked, record_of
from velo.errors import CheckpointError

if TYPE_CHECKING:
    from velo._checkpoint.journal_file import Frame
    from velo.connect.model import Partition, Position, Source

__all__ = ["Journalled", "unabsorbed"]

_log = logging.getLogger("velo.connect")

# So much is read before it is asked for: records, and bytes.
_MOST_RECORDS, _MOST_BYTES = 4096, 4 << 20
# The most records that are remembered because the source may not know that they are acknowledged.
_MOST_UNSURE = 16_384
# While the disk is full, it is tried again after these seconds: first, and at most.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
# The partition of a record that cannot be read without running a pickle.
_UNKNOWN = object()

_Place = tuple[Hashable, Any]


class Journalled:
    """A source with a journal. What the journal does not change is the source's own.

    A record has the position `(number, position)`: its number in the journal, and the position that
    the source has given it. Where the source's positions are `stable`, a record that comes again is
    left out.

    Args:
        source: A source without `seek`.
        path: The folder of the checkpoint that has the journal.
        trusted: Whether the journal may hold pickles.

    """

    def __init__(self, source: Source, path: Path, *, trusted: bool) -> None:
        self._source = source
        self._path = path
        self._trusted = trusted
        self._journal: EventJournal | None = None
        # By partition: the number that ticks have absorbed, and of those that were given the last
        # one, where that is higher.
        self._absorbed: dict[Hashable, int] = {}
        self._given: dict[Hashable, int] = {}
        self._last = 0
        # What was read, as it is and packed; what is in the journal, with its bytes.
        self._read: list[tuple[Record | Bad, bytes]] = []
        self._ready: collections.deque[tuple[Batch, int]] = collections.deque()
        # How many records these are, and of how many bytes.
        self._records = self._bytes = 0
        self._has_read = asyncio.Event()
        self._has_written = asyncio.Event()
        self._room = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._is_over = False
        # Places of records that earlier runs have written to the journal; whether the source may
        # not know yet that they are acknowledged.
        self._stable = bool(getattr(source, "stable", False))
        self._known: dict[_Place, bool] = {}
        self._is_sure = True  # what is in the journal is acknowledged

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    # Where it begins.

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Begin behind these positions, in the journal.

        Raises:
            CheckpointError: When the journal is torn or missing.

        """
        self._absorbed.update(_numbers(positions))
        behind = max(self._absorbed.values(), default=0)
        self._journal = EventJournal(self._path, behind)
        self._last = behind

    async def __aiter__(self) -> AsyncIterator[Batch | Assigned]:
        """Give what no tick has absorbed, and then what the source gives."""
        async for batch in self._kept():
            yield batch
        if self._stopped.is_set():
            return
        name = name_of(self._source)
        self._reading = reading = asyncio.create_task(self._read_on(), name=f"{name} reading")
        writing = asyncio.create_task(self._write_on(reading), name=f"{name} journal")
        reading.add_done_callback(lambda _task: self._has_read.set())
        writing.add_done_callback(lambda _task: self._has_written.set())
        try:
            while self._ready or not writing.done():
                if not self._ready:
                    self._has_written.clear()
                    await self._has_written.wait()
                    continue
                batch, size = self._ready.popleft()
                self._records -= len(batch)
                self._bytes -= size
                self._room.set()
                yield batch
            writing.result()
            if not (reading.cancelled() and self._stopped.is_set()):
                reading.result()  # raises what has ended it
        finally:
            self._is_over = not self._stopped.is_set()
            self._stopped.set()  # a full disk is not waited for
            reading.cancel()
            with waiting_for("the end", self._source):
                await asyncio.wait([reading, writing])
            writing.exception()  # the run ends with another one

    async def _kept(self) -> AsyncIterator[Batch]:
        """Give what the journal has that no tick has absorbed."""
        assert self._journal is not None
        latest: list[Any] = []
        async for frame in self._journal.frames():
            unsure, packed = self._loaded(frame.payload)
            if unsure is not None:
                self._known = dict.fromkeys(self._known, False) | dict.fromkeys(unsure, True)
            latest = list(map(self._loaded, packed))
            items = []
            for number, parts in enumerate(latest, frame.first):
                if number > self._absorbed.get(parts[0], 0):
                    items.append(_item(number, *parts))
            if self._stable:
                self._known.update(((parts[0], parts[1]), False) for parts in latest)
            self._note(items, frame.end - 1)
            if items:
                yield items
        if self._stable:  # the program may have died before it has acknowledged these
            self._known.update(((parts[0], parts[1]), True) for parts in latest)

    def _loaded(self, packed: bytes) -> Any:
        try:
            return _core.loads(packed, self._trusted)
        except ValueError as error:
            why, *pickled = error.args
            if pickled:
                why += (
                    f" (it imports {imports_of(*pickled)}); to load it, say that nobody else "
                    "writes to the checkpoint, by `trusted=True` or `--trust`"
                )
            raise CheckpointError(
                f"a record in the journal of the checkpoint `{self._path}` cannot be loaded: {why}"
            ) from None

    # Reading.

    async def _read_on(self) -> None:
        source: Any = self._source
        items = aiter(source)
        try:
            async for item in items:
                # What is in the journal is this program's, whoever has the partition.
                if isinstance(item, Assigned | Revoked | Lost) or not item:
                    continue
                packed = self._packed(item)
                while self._records >= _MOST_RECORDS or self._bytes >= _MOST_BYTES:
                    self._room.clear()
                    await self._room.wait()
                self._read.extend(zip(item, packed, strict=True))
                self._records += len(item)
                self._bytes += sum(map(len, packed))
                self._has_read.set()
        finally:
            if (close := getattr(items, "aclose", None)) is not None:
                await close()

    def _packed(self, items: Sequence[Record | Bad]) -> list[bytes]:
        """Encode each item alone: the codec pickles a value that is there twice."""
        try:
            parts = [_parts(item) for item in items]
        except (AttributeError, TypeError) as error:
            raise misfit(items, error) from None
        packed = []
        for item, some in zip(items, parts, strict=True):
            try:
                packed.append(_core.dumps(some))
            except Exception as error:
                raise self._unfit(item, f"{type(error).__name__}: {error}") from error
            if not self._trusted and (pickled := _core.pickle_in(packed[-1])) is not None:
                raise self._unfit(item, f"it imports {imports_of(pickled)}")
        return packed

    def _unfit(self, item: Record | Bad, why: str) -> CheckpointError:
        record = record_of(item)
        return CheckpointError(
            f"the record at position {record.position!r} of {record.partition!r} of "
            f"`{name_of(self._source)}` is no plain value ({why}), and cannot be kept in the "
            f"journal of the checkpoint `{self._path}`: have `decode=` make plain values, or say "
            "that nobody else writes to the checkpoint, by `trusted=True` or `--trust`"
        )

    # Journalling.

    async def _write_on(self, reading: asyncio.Task[None]) -> None:
        """Write to the journal what is read, and acknowledge it, until nothing more is read.

        At an error, what is in the journal is acknowledged still, and nothing more is written.
        """
        while (self._read or not reading.done()) and not self._is_over:
            if self._read:
                read, self._read = self._read, []
                await self._write(read)
            else:
                self._has_read.clear()
                await self._has_read.wait()

    async def _write(self, read: list[tuple[Record | Bad, bytes]]) -> None:
        ends = {record.partition: record.position for record in (record_of(i) for i, _ in read)}
        known: set[_Place] = set()
        new = read
        if self._known:
            known = self._known.keys() & {_place(item) for item, _ in read}
            new = [each for each in read if _place(each[0]) not in known]
        if new:
            self._is_sure = False
            first = await self._append([packed for _, packed in new])
        with waiting_for("`commit`", self._source):
            await self._source.commit(ends)
        self._is_sure = True
        for place in known:
            del self._known[place]
        reached("journal", 4)
        self._records -= len(read) - len(new)
        size = sum(len(packed) for _, packed in new)
        self._bytes -= sum(len(packed) for _, packed in read) - size
        self._room.set()  # what is known is given to nobody, who would make room by taking it
        if new:
            batch = [_numbered(number, item) for number, (item, _) in enumerate(new, first)]
            self._note(batch, first + len(batch) - 1)
            self._ready.append((batch, size))
            self._has_written.set()

    async def _append(self, packed: list[bytes]) -> int:
        """Write to the journal; while its disk is full, wait."""
        assert self._journal is not None
        wait = _FIRST_WAIT
        while True:
            unsure = self._unsure() if self._journal.begins_file else None
            try:
                first = await self._journal.append(_core.dumps((unsure, packed)), len(packed))
                if wait > _FIRST_WAIT:
                    _log.warning("%s: goes on reading", name_of(self._source))
                return first
            except DiskFull as error:
                if self._stopped.is_set():
                    raise
                if wait == _FIRST_WAIT:
                    _log.warning(
                        "%s: %s; meanwhile nothing more is read or acknowledged",
                        *(name_of(self._source), error),
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    def _unsure(self) -> list[_Place]:
        return [place for place, is_unsure in self._known.items() if is_unsure][-_MOST_UNSURE:]

    def _note(self, items: Batch, last: int) -> None:
        """Note that records are given, up to a number."""
        for item in items:
            record = record_of(item)
            number = record.position[0]
            if record.partition not in self._given:
                self._absorbed[record.partition] = number - 1
            self._given[record.partition] = number
        self._last = last

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Note that a tick has absorbed all up to these; remove files that have nothing else."""
        for partition, (number, _) in positions.items():
            self._absorbed[partition] = number
            if self._given.get(partition, 0) <= number:
                self._given.pop(partition, None)
        assert self._journal is not None
        oldest = min((self._absorbed[partition] for partition in self._given), default=self._last)
        await self._journal.drop(oldest)

    # The end.

    def stop(self) -> None:
        """Read no more: what was read goes to the journal, and then the iteration ends."""
        self._stopped.set()
        if (stop := getattr(self._source, "stop", None)) is not None:
            stop()
        elif self._reading is not None:
            self._reading.cancel()

    async def close(self) -> None:
        """Close the source and the journal."""
        try:
            await closed(self._source)
        finally:
            if (journal := self._journal) is not None:
                self._journal = None
                if self._is_sure and not journal.begins_file:
                    with contextlib.suppress(CheckpointError):
                        # The next run need not expect the last records again.
                        await journal.append(_core.dumps((self._unsure(), [])), 0)
                journal.close()


def unabsorbed(
    path: Path, positions: Mapping[Hashable, Any], ahead: Mapping[Hashable, Sequence[Any]]
) -> int:
    """Count the records in the journal of a checkpoint that its last tick has not absorbed.

    Args:
        path: The folder of the checkpoint.
        positions: The positions of that tick.
        ahead: Those behind these that it has absorbed as well.

    Raises:
        CheckpointError: When the journal is torn.

    """
    absorbed: dict[Hashable, int] = _numbers(positions)
    # Rather one too many than one too few.
    absorbed[_UNKNOWN] = min(absorbed.values(), default=0)
    beyond = {
        number for some in ahead.values() for number in _numbers(dict(enumerate(some))).values()
    }
    return sum(
        number > absorbed.get(partition, 0) and number not in beyond
        for frame in frames_in(path)
        for number, partition in enumerate(_partitions(frame), frame.first)
    )


def _partitions(frame: Frame) -> list[Hashable]:
    """Give the partition of each record of a frame."""
    try:
        _, packed = _core.loads(frame.payload, False)
    except ValueError:
        return [_UNKNOWN] * frame.records
    return list(map(_partition, packed))


def _partition(packed: bytes) -> Hashable:
    try:
        partition: Hashable = _core.loads(packed, False)[0]
    except ValueError:
        return _UNKNOWN
    return partition


def _numbers(positions: Mapping[Hashable, Any]) -> dict[Hashable, int]:
    """Give by partition the number of a position."""
    return {
        partition: position[0]
        for partition, position in positions.items()
        # Another position is one of a source that this function has had before.
        if type(position) is tuple and len(position) == 2 and type(position[0]) is int
    }


def _place(item: Record | Bad) -> _Place:
    record = record_of(item)
    return record.partition, record.position


def _parts(item: Record | Bad) -> tuple[Any, ...]:
    """Give what the journal has of an item: why it is no event comes last."""
    record = record_of(item)
    error = (f"{type(item.error).__name__}: {item.error}",) if isinstance(item, Bad) else ()
    return (
        *(record.partition, record.position, record.value, record.key, record.topic),
        *(record.timestamp, record.headers),
        *error,
    )


def _item(
    number: int,
    partition: Hashable,
    position: Any,
    value: Any,
    key: Any,
    topic: str,
    timestamp: float | None,
    headers: Headers,
    *error: str,
) -> Record | Bad:
    """Give the item of these parts, with its number in the journal."""
    record = Record(value, key, topic, partition, (number, position), timestamp, headers)
    return Bad(record, ValueError(*error)) if error else record


def _numbered(number: int, item: Record | Bad) -> Record | Bad:
    """Give an item that was read, with its number in the journal."""
    old = record_of(item)
    record = Record(
        *(old.value, old.key, old.topic, old.partition, (number, old.position), old.timestamp),
        headers=old.headers,
    )
    return Bad(record, item.error) if isinstance(item, Bad) else record
