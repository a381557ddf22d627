"""Gates: each partition of a source passes so many records as may wait, and holds up no other."""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from velo.connect.model import Bad, Record, record_of

__all__ = ["Flow", "Gates", "misfit"]


class Flow(NamedTuple):
    """How the records of one partition go.

    Attributes:
        read: How many were read.
        handled: How many of those are handled, up to the first that is not.
        full: Whether so many are on their way that no more may be.

    """

    read: int
    handled: int
    full: bool


class Gates:
    """Holds records of partitions that have too many which are not handled.

    Args:
        source: The source, which is asked to pause such a partition, if it can.
        distance: How many records of a partition are on their way.
        limit: How many may be.

    """

    def __init__(self, source: Any, distance: Callable[[Hashable], int], limit: int) -> None:
        self._pause = getattr(source, "pause", None)
        self._resume = getattr(source, "resume", None)
        self._distance = distance
        self._limit = limit
        self._held: dict[Hashable, collections.deque[Record | Bad]] = {}
        self._read: collections.Counter[Hashable] = collections.Counter()

    @property
    def closed(self) -> bool:
        """Whether records are held."""
        return bool(self._held)

    @property
    def held_up(self) -> bool:
        """Whether nothing more can be read: a partition is full, and the source cannot pause it."""
        return bool(self._held) and self._pause is None

    def pass_on(self, items: Sequence[Record | Bad]) -> Sequence[Record | Bad]:
        """Give the records that may go on; hold the others.

        Raises:
            TypeError: When a source has given something else than records.

        """
        try:
            counts = collections.Counter(map(_partition, items))
        except (AttributeError, TypeError) as error:
            raise misfit(items, error) from None
        self._read.update(counts)
        room = {p: self._room(p) for p in counts}
        if all(room[p] >= count for p, count in counts.items()):
            return items
        passed: list[Record | Bad] = []
        for item in items:
            partition = _partition(item)
            if room[partition] > 0:
                room[partition] -= 1
                passed.append(item)
            elif (held := self._held.get(partition)) is not None:
                held.append(item)
            else:
                self._held[partition] = collections.deque([item])
                if self._pause is not None:
                    self._pause([partition])
        return passed

    def open(self) -> list[Record | Bad]:
        """Give the held records that there is room for again."""
        passed: list[Record | Bad] = []
        for partition, held in list(self._held.items()):
            room = self._limit - self._distance(partition)
            if room < len(held) and room < (self._limit + 1) // 2:
                continue  # a few at a time are not worth it
            passed.extend(held.popleft() for _ in range(min(room, len(held))))
            if not held:
                del self._held[partition]
                if self._resume is not None:
                    self._resume([partition])
        return passed

    def _room(self, partition: Hashable) -> int:
        return 0 if partition in self._held else self._limit - self._distance(partition)

    def discard(self, partitions: set[Hashable]) -> None:
        """Drop the records of partitions."""
        for partition in partitions:
            self._held.pop(partition, None)

    def forget(self, partition: Hashable) -> None:
        """Count a partition no more: another program has it."""
        self._read.pop(partition, None)

    def flows(self) -> dict[Hashable, Flow]:
        """Give how the records of each partition go that some were read of."""
        found = {}
        for partition, read in self._read.items():
            held = len(self._held.get(partition, ()))
            on_their_way = self._distance(partition)
            found[partition] = Flow(read, read - held - on_their_way, held > 0)
        return found


def _partition(item: Record | Bad) -> Hashable:
    return record_of(item).partition


def misfit(items: Any, error: Exception) -> TypeError:
    """Return the error of a source that has given something else than a list of records."""
    rule = "a source gives lists of `connect.Record` and `connect.Bad`"
    if not isinstance(items, Sequence) or isinstance(items, Bad | str | bytes):
        return TypeError(f"{rule}, and has given {_short(items)}: {error}")
    for item in items:
        if not isinstance(record_of(item), Record):
            return TypeError(f"{rule}, and has given a list with {_short(item)}")
    return TypeError(f"the partition of a record is a value that can be hashed: {error}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
