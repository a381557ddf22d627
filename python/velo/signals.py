"""SIGINT and SIGTERM of a program that uses velo as a library.

```python
from velo.signals import GracefulShutdown


async def serve(work):
    with GracefulShutdown() as shutdown:
        while not shutdown.should_shutdown:
            await work()
```
"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any

__all__ = ["GracefulShutdown"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """Turns the first SIGINT or SIGTERM into an event; a second one acts as it did before.

    Use it in the main thread, as a context manager, or between `setup` and `restore`.
    """

    def __init__(self) -> None:
        self._requested = False
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._before: dict[signal.Signals, Any] = {}

    def setup(self) -> None:
        """Take the two signals over.

        Raises:
            ValueError: From another thread than the main one.

        """
        for number in _NUMBERS:
            self._before.setdefault(number, signal.signal(number, self._handle))

    def restore(self) -> None:
        """Give the signals back to the handlers that they had."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def should_shutdown(self) -> bool:
        """Whether a signal has come."""
        return self._requested

    async def wait_for_shutdown(self) -> None:
        """Wait until a signal comes. A cancelled wait changes nothing."""
        if self._requested:
            return
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        self._waiters.append(waiter)
        try:
            if not self._requested:
                await waiter[1].wait()
        finally:
            self._waiters.remove(waiter)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self.restore()
        for loop, event in list(self._waiters):
            loop.call_soon_threadsafe(event.set)  # the loop may be asleep

    def __enter__(self) -> GracefulShutdown:
        self.setup()
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()
