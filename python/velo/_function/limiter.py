"""A bound on the permits that are held at a time, with a fair queue of those who wait."""

from __future__ import annotations

import threading
from collections import deque

from velo._types import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["Limiter"]


class Limiter:
    """Permits, given out in the order in which they were asked for.

    All event loops and threads of the process share them.

    Args:
        permits: How many may be held at a time.

    """

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._held = 0
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether no permit is held, nor on its way to a task that has waited for it."""
        return self._held == 0

    @property
    def contended(self) -> bool:
        """Whether a task waits for a permit."""
        return bool(self._waiting)

    def try_acquire(self) -> bool:
        """Take a permit if one is free. While a task waits, none is: permits are handed over."""
        with self._lock:
            if self._held >= self._permits:
                return False
            self._held += 1
            return True

    async def acquire(self) -> None:
        """Take a permit, after all that wait for one already. A cancelled wait takes none."""
        import asyncio

        with self._lock:
            if self._held < self._permits:
                self._held += 1
                return
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            with self._lock:
                waited = future in self._waiting
                if waited:
                    self._waiting.remove(future)
            if not waited:  # the permit was handed over at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give a permit back: to the first task that waits, if any. Any thread may call this."""
        with self._lock:
            while self._waiting:
                future = self._waiting.popleft()
                try:
                    future.get_loop().call_soon_threadsafe(_hand_over, future)
                except RuntimeError:
                    continue  # its loop is closed
                return
            self._held -= 1


def _hand_over(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
