"""Records on their way from a driver to the keys."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from velo.connect.model import record_of

if TYPE_CHECKING:
    from velo.connect.model import Bad, Record

__all__ = ["RecordFeed"]


class RecordFeed:
    """Records that the keys have yet to take: an iterator that stops while there are none."""

    def __init__(self) -> None:
        self.exhausted = False
        self._items: collections.deque[Record | Bad] = collections.deque()
        self._taken = asyncio.Event()

    def __iter__(self) -> RecordFeed:
        return self

    def __next__(self) -> Record | Bad:
        try:
            return self._items.popleft()
        except IndexError:
            self._taken.set()
            raise StopIteration from None

    def discard(self, partitions: set[Hashable]) -> None:
        """Drop the records of partitions."""
        kept = [item for item in self._items if record_of(item).partition not in partitions]
        self._items = collections.deque(kept)

    async def put(self, items: Sequence[Record | Bad], nudge: Callable[[], None]) -> None:
        """Have records taken, and wait until they are."""
        if not items:
            return
        self._items.extend(items)
        self._taken.clear()
        nudge()
        await self._taken.wait()
