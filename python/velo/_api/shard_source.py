"""One partition of a source, as a source of its own."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping
from typing import Any

from velo._diagnostics.source_figures import name_of
from velo.connect.model import Batch, Revoked

__all__ = ["ShardSource"]

# A partition is paused while so many batches of it wait.
_AHEAD = 4


class ShardSource:
    """A partition that the group gives, from behind the position of its checkpoint.

    Attributes:
        name: The name of the whole source.
        is_read: Whether it has said where it begins.
        given_away: Set once all records are handled that came before the revocation.

    Args:
        source: The whole source.
        partition: The partition.
        handled: Called with the position up to which it is handled.

    """

    def __init__(
        self, source: Any, partition: Hashable, handled: Callable[[Mapping[Hashable, Any]], None]
    ) -> None:
        self.name = name_of(source)
        self.is_read = False
        self.given_away = asyncio.Event()
        self._source = source
        self._partition = partition
        self._handled = handled
        self._position: Any = None
        self._items: collections.deque[Batch | Revoked] = collections.deque()
        self._came = asyncio.Event()
        self._ends = False
        # Why the partition is paused: the driver has asked for it, or has much to take.
        self._reasons: set[str] = set()

    # For the run that has the whole source.

    def put(self, item: Batch | Revoked) -> None:
        """Give it records, or tell that it goes."""
        self._items.append(item)
        self._came.set()
        if len(self._items) > _AHEAD:
            self._hold("full")

    async def topic(self) -> tuple[str, int] | None:
        """Give the topic, and how many partitions it has; None: the source does not say."""
        topic_of = getattr(self._source, "topic_of", None)
        return None if topic_of is None else await topic_of(self._partition)

    def end(self) -> None:
        """Tell that nothing more comes."""
        self._ends = True
        self._came.set()

    # For the driver.

    async def __aiter__(self) -> AsyncIterator[Batch | Revoked]:
        """Give what has come. Once it was given away, nothing more, and no end either."""
        self._source.place(self._partition, self._position)
        self.is_read = True
        while True:
            while self._items:
                item = self._items.popleft()
                if len(self._items) < _AHEAD:
                    self._let_go("full")
                yield item
                if isinstance(item, Revoked):
                    self.given_away.set()
                    await asyncio.get_running_loop().create_future()  # until it is cancelled
            if self._ends:
                return
            self._came.clear()
            await self._came.wait()

    def seek(self, positions: Mapping[Hashable, Any]) -> None:
        """Begin behind the position of the partition, if there is one."""
        self._position = positions.get(self._partition)

    async def commit(self, positions: Mapping[Hashable, Any]) -> None:
        """Note the position; the run commits those of all partitions together."""
        self._handled(positions)

    def pause(self, _partitions: Iterable[Hashable]) -> None:
        """Have nothing read."""
        self._hold("asked")

    def resume(self, _partitions: Iterable[Hashable]) -> None:
        """Have the partition read again."""
        self._let_go("asked")

    def stop(self) -> None:
        """Give nothing more."""
        self._items.clear()
        self.end()

    def _hold(self, reason: str) -> None:
        if not self._reasons:
            self._source.pause([self._partition])
        self._reasons.add(reason)

    def _let_go(self, reason: str) -> None:
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons:
                self._source.resume([self._partition])
