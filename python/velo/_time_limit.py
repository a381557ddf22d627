"""Time limits for which the time does not count in which the process stood still."""

from __future__ import annotations

import asyncio
from types import TracebackType

from velo import _core

__all__ = ["stood_still", "time_left", "time_limit"]


def stood_still(seconds: float, loop: asyncio.AbstractEventLoop) -> float:
    """Return for how many of the last `seconds` of a loop the process stood still.

    The clock of a loop that a test turns stands still meanwhile, too: for none of them.
    """
    return 0.0 if getattr(loop, "_is_turned", False) else _core.stood_still(seconds)


def time_left(limit: float, passed: float, loop: asyncio.AbstractEventLoop) -> float:
    """Return the seconds of `limit` that are left once `passed` seconds of a loop are over."""
    return limit - (passed - stood_still(passed, loop))


class time_limit:
    """Do as `asyncio.timeout`, but for time in which this process is stopped or frozen.

    Raises:
        TimeoutError: When the block takes longer.

    """

    __slots__ = ("_began", "_limit", "_loop", "_scope", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        self._began = self._loop.time()
        self._limit: _core.RunningLimit | None = _core.RunningLimit(self._seconds)
        self._timer = self._loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        left = time_left(self._seconds, self._loop.time() - self._began, self._loop)
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._scope.reschedule(self._loop.time())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._limit = None
        await self._scope.__aexit__(kind, error, traceback)
