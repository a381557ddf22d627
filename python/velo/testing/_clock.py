"""An event loop whose time passes only while all of its tasks wait."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["VirtualClock", "run_virtual"]

T = TypeVar("T")
Ready = list[tuple[selectors.SelectorKey, int]]


class VirtualClock(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time.

    Whenever all tasks wait, its clock jumps to the next scheduled moment. So `asyncio.sleep(3600)`,
    `events.ticks(30)`, a stream's `timeout` and deadlines end at once, in their order, and tests of
    them are exact and fast.

    Use it for inline mode. Worker processes, threads and sockets take real time, for which this
    clock does not wait: a deadline beside one of them passes at once. `loop.time()` returns the
    virtual time; `time.monotonic()` and similar functions do not change.

    `run_virtual` runs a coroutine in such a loop. With pytest-asyncio, write a fixture
    `event_loop_policy` that returns a policy whose `new_event_loop` creates one. The fixture
    `virtual_clock` is for tests that are not coroutines.
    """

    # Its time passes neither while threads work, so that plain sources are read in the loop's own,
    # nor while the process stands still.
    _is_turned = True

    def __init__(self) -> None:
        self._now = 0.0
        self._selector_of_time = _Selector(self)
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Return the seconds that have passed for this loop."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass, even while tasks have work to do.

        Raises:
            ValueError: When `seconds` is negative.

        """
        if seconds < 0:
            raise ValueError(f"`seconds` must be at least 0, not {seconds!r}")
        from velo._api import idle

        self._now += seconds
        # asyncio runs callbacks that are due within its clock's resolution. After half a year, that
        # is less than the precision of a float, and no callback would ever be due.
        self._clock_resolution = max(1e-9, math.ulp(self._now))
        idle.age(self, seconds)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, as `asyncio.run` would."""
        return self.run_until_complete(coroutine)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads of the default executor, in real time."""
        await super().shutdown_default_executor()

    def _on_standstill(self, call: Callable[[], bool], seconds: float) -> None:
        """Call `call` when nothing is scheduled and nothing has happened for that many seconds."""
        self._selector_of_time.standstill = (call, seconds)


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualClock) -> None:
        super().__init__()
        self._loop = loop
        self.standstill: tuple[Callable[[], bool], float] | None = None

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.advance(timeout)
            return ready
        # Nothing is scheduled: only a thread, or another process, can go on.
        if self.standstill is None:
            return super().select(None)
        call, seconds = self.standstill
        while not (ready := super().select(seconds)):
            if call():
                return ready
        return ready


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a `VirtualClock`, as `asyncio.run` would, and return what it returns."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(coroutine)
