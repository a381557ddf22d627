"""Time limits for which the time does not count in which the process stood still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from velo import _core

__all__ = ["time_limit"]


@contextlib.asynccontextmanager
async def time_limit(seconds: float) -> AsyncGenerator[None, None]:
    """Do as `asyncio.timeout`, but for time in which this process is stopped or frozen.

    Raises:
        TimeoutError: When the block takes longer.

    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    limit = _core.RunningLimit(seconds)
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as scope:

        def look() -> None:
            nonlocal timer
            passed = loop.time() - began
            left = seconds - (passed - _core.stood_still(passed))
            if left > 0:
                timer = loop.call_later(left, look)
            else:
                scope.reschedule(loop.time())

        timer = loop.call_later(seconds, look)
        try:
            yield
        finally:
            timer.cancel()
            del limit
