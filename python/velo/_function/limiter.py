"""How many streams of one function may be open at a time."""

from __future__ import annotations

import threading
from collections import deque

from velo._types import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["Places"]


class Places:
    """A fair, process-wide count of open streams, shared by all event loops and threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        with self._lock:
            if self._taken >= self._limit:
                return False
            self._taken += 1
            return True

    async def take(self) -> None:
        """Take a place; wait in line for one. A cancelled wait takes none."""
        import asyncio

        with self._lock:
            if self._taken < self._limit:
                self._taken += 1
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
            if not waited:  # the place was handed over at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give a place back: to the first who waits, if any. Callable from every thread."""
        with self._lock:
            while self._waiting:
                future = self._waiting.popleft()
                try:
                    future.get_loop().call_soon_threadsafe(_hand_over, future)
                except RuntimeError:
                    continue  # its loop is closed
                return
            self._taken -= 1


def _hand_over(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
