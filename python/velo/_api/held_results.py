"""Results that wait for the tick that stores what they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from itertools import chain, compress, islice
from typing import Any

__all__ = ["HeldResults"]

_DROPPED: Any = object()
# A part is full when it has so many results: deleting some of them moves no more than that.
_FULL = 1024


class HeldResults:
    """Results with their keys, in order, each at its place in the row.

    They lie in parts, so that `split` moves most of them without touching each. The keys and the
    results of a part are two lists: a pair for each would be one more object that the garbage
    collector looks at again and again while it waits.
    """

    __slots__ = ("_count", "_has_dropped", "_parts")

    def __init__(self) -> None:
        self._parts: list[tuple[list[Any], list[Any]]] = []
        self._count = 0
        self._has_dropped = False

    def __len__(self) -> int:
        return self._count

    def add(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Append results with their keys."""
        if results:
            keys, values = zip(*results, strict=True)
            self._append(keys, values)

    def _append(self, keys: Sequence[Any], results: Sequence[Any]) -> None:
        if not self._parts or len(self._parts[-1][0]) >= _FULL:
            self._parts.append(([], []))
        last = self._parts[-1]
        last[0].extend(keys)
        last[1].extend(results)
        self._count += len(keys)

    def drop(self, places: Mapping[Hashable, Sequence[range]]) -> None:
        """Drop the results of these keys at these places: the others stay at theirs."""
        place = 0
        for keys, results in self._parts:
            for index, key in enumerate(keys):
                if key is not _DROPPED and any(
                    place + index in some for some in places.get(key, ())
                ):
                    keys[index] = results[index] = _DROPPED
                    self._has_dropped = True
            place += len(keys)

    def split(self, late: Set[Hashable], marks: Mapping[Hashable, int]) -> HeldResults:
        """Take out and return those that lie behind the marks of late keys.

        Args:
            late: The keys.
            marks: By key: the place of its mark; 0 without one.

        """
        behind = HeldResults()
        if not late and not self._has_dropped:
            return behind
        leaves = (late | {_DROPPED} if self._has_dropped else late).__contains__
        place = 0
        # The event loop stands still meanwhile: so there are few steps for a result that stays.
        for part in self._parts:
            keys, count = part[0], len(part[0])
            gone = [
                index
                for index in compress(range(count), map(leaves, keys))
                if (key := keys[index]) is _DROPPED or place + index >= marks.get(key, 0)
            ]
            if gone:
                behind._take(part, gone)
            place += count
        self._parts = [part for part in self._parts if part[0]]
        self._count = sum(len(keys) for keys, _ in self._parts)
        self._has_dropped = False
        return behind

    def _take(self, part: tuple[list[Any], list[Any]], gone: list[int]) -> None:
        """Take results out of a part; those that were dropped go nowhere."""
        keys, results = part
        own = [index for index in gone if keys[index] is not _DROPPED]
        self._append([keys[index] for index in own], [results[index] for index in own])
        stay = bytearray(b"\1") * len(keys)
        for index in gone:
            stay[index] = 0
        keys[:] = compress(keys, stay)
        results[:] = compress(results, stay)

    def by_key(self) -> Counter[Hashable]:
        """Count the results of each key."""
        counts: Counter[Hashable] = Counter()
        for keys, _ in self._parts:
            counts.update(keys)
        del counts[_DROPPED]
        return counts

    def batches(self, size: int) -> Iterator[list[tuple[Any, Any]]]:
        """Give them as pairs, so many at a time."""
        pairs = chain.from_iterable(zip(*part, strict=True) for part in self._parts)
        while some := list(islice(pairs, size)):
            yield some
