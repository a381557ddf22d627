"""Threads that open and close checkpoints in object stores.

asyncio's own threads are few, and belong to the program: a store that is slow would hold up what it
runs in them. Opening and closing have threads apart, so that a shard that goes, and for which the
next program waits, does not wait for those that come.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from velo._checkpoint.checkpoint import Checkpoint

__all__ = ["CheckpointThreads"]

T = TypeVar("T")

# Threads that open checkpoints, and that close them: they wait for the store, not for cores.
_MOST = 8


class CheckpointThreads:
    """The threads of one run; they start as they are needed."""

    def __init__(self) -> None:
        self._opening = ThreadPoolExecutor(_MOST, "velo checkpoint open")
        self._closing = ThreadPoolExecutor(_MOST, "velo checkpoint close")
        self._calls: set[Future[Any]] = set()
        # Tasks that close checkpoints whose opening was cancelled.
        self._left: set[asyncio.Task[None]] = set()

    async def call(self, call: Callable[[], T]) -> T:
        """Make a call that asks the store."""
        return await asyncio.shield(self._begin(self._opening, call))

    async def open(self, opening: Callable[..., Checkpoint]) -> Checkpoint:
        """Open a checkpoint; when this is cancelled, close it once it is open.

        Args:
            opening: `Checkpoint.open` with all its arguments but `is_wanted`.

        """
        unwanted = threading.Event()
        future = self._begin(
            self._opening, partial(opening, is_wanted=lambda: not unwanted.is_set())
        )
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            unwanted.set()
            left = asyncio.ensure_future(self._close_opened(future))
            self._left.add(left)
            left.add_done_callback(self._left.discard)
            # Its claim would shut out the next one of this process, if it came behind that.
            await asyncio.shield(left)
            raise

    async def _close_opened(self, opening: asyncio.Future[Checkpoint]) -> None:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await self.close(opening.result())

    async def close(self, store: Checkpoint) -> None:
        """Close a checkpoint, also when this is cancelled."""
        await asyncio.shield(self._begin(self._closing, store.close))

    def _begin(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> asyncio.Future[T]:
        future = pool.submit(call)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return asyncio.wrap_future(future)

    def end(self) -> None:
        """End the threads; those whose calls were left end behind them."""
        for pool in (self._opening, self._closing):
            pool.shutdown(wait=not self._calls)
