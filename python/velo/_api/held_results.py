"""Results that wait for the tick that stores what they come from."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["HeldResults"]

_DROPPED: Any = object()


class HeldResults:
    """Results with their keys, in order, each at its place in the row.

    Keys and results lie in two lists: a pair for each would be one more object that the garbage
    collector looks at again and again while it waits.
    """

    __slots__ = ("_has_dropped", "_keys", "_results")

    def __init__(self) -> None:
        self._keys: list[Any] = []
        self._results: list[Any] = []
        self._has_dropped = False

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Append results with their keys."""
        if results:
            keys, values = zip(*results, strict=True)
            self._keys += keys
            self._results += values

    def drop(self, places: Mapping[Hashable, Sequence[range]]) -> None:
        """Drop the results of these keys at these places: the others stay at theirs."""
        for place, key in enumerate(self._keys):
            if key is not _DROPPED and any(place in some for some in places.get(key, ())):
                self._keys[place] = self._results[place] = _DROPPED
                self._has_dropped = True

    def split(self, late: Container[Hashable], marks: Mapping[Hashable, int]) -> HeldResults:
        """Take out and return those that lie behind the marks of late keys.

        Args:
            late: The keys.
            marks: By key: the place of its mark; 0 without one.

        """
        behind = HeldResults()
        if not late and not self._has_dropped:
            return behind
        before = HeldResults()
        for place, (key, result) in enumerate(zip(self._keys, self._results, strict=True)):
            if key is not _DROPPED:
                part = behind if key in late and place >= marks.get(key, 0) else before
                part._keys.append(key)
                part._results.append(result)
        self._keys, self._results, self._has_dropped = before._keys, before._results, False
        return behind

    def batches(self, size: int) -> Iterator[list[tuple[Any, Any]]]:
        """Give them as pairs, so many at a time."""
        for start in range(0, len(self), size):
            some = slice(start, start + size)
            yield list(zip(self._keys[some], self._results[some], strict=True))
