"""A session: a stream that outlives its user, under a key. The same for both modes."""

from __future__ import annotations

import asyncio

from velo import _core
from velo._function.exceptions import log_failure
from velo._time_limit import time_left

__all__ = ["Session"]


class Session:
    """A session and the timer that ends it while it is detached.

    Its owner reports when an attachment begins and ends, and when the function has ended.

    Attributes:
        core: What runs the function.
        timeout: How many seconds it may be detached before its input ends. None: forever.
        ending: Whether its input was ended while it was detached, or the function has ended. It
            takes no more attachments; the next one begins a new session.

    """

    core: _core.Session

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        # While the timer runs: time in which this process stands still does not count.
        self._limit: _core.RunningLimit | None = None
        self._detached = 0.0
        self.timeout = timeout
        self.ending = False

    def on_attached(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._limit = None

    def on_detached(self) -> None:
        """Start the timer, unless it runs."""
        if self.timeout is not None and self._timer is None and not self.ending:
            self._detached = self._loop.time()
            self._limit = _core.RunningLimit(self.timeout)
            self._timer = self._loop.call_later(self.timeout, self._on_time, self.timeout)

    def _on_time(self, timeout: float) -> None:
        left = time_left(timeout, self._loop.time() - self._detached, self._loop)
        if left > 0:
            self._timer = self._loop.call_later(left, self._on_time, timeout)
        else:
            self.expire()

    def on_ended(self, error: BaseException | None) -> None:
        """Stop the timer, and log what the function raised after the last attachment."""
        self.on_attached()
        self.ending = True
        if error is not None:
            self._loop.call_soon(log_failure, error)  # not in the middle of a step

    def expire(self) -> None:
        """End the input, if no attachment can begin any more."""
        self.on_attached()
        if not self.ending and self.may_expire():
            self.ending = True
            self.core.end_input()

    def may_expire(self) -> bool:
        """Return whether it is detached, and see to it that it stays so."""
        raise NotImplementedError
