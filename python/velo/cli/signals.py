"""SIGINT and SIGTERM of a run: the first signal asks it to stop, the second one ends it.

The event loop may not run: an inline function may hold it. So a thread reads signals from the
descriptor that Python's own handler writes to, hands them to the loop, and ends the process if the
loop does not. Code that holds the interpreter's lock stops that thread as well; if such code checks
for signals, the handler does the thread's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from velo import _core
from velo._system import after_fork
from velo.cli.wake import Wake

__all__ = ["Signals"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# Signals within these seconds count as one: `timeout` sends a signal to the program, and again to
# its process group.
_SAME = 0.05
# The seconds after the second signal until the process is ended by force.
_BOUND = 2.0
# The same after the end of `drain`, if there was only one signal.
_SLACK = 10.0

_Hear = Callable[[signal.Signals], object]


class Signals:
    """Handles the signals of this process until its end.

    Args:
        last: Called before the process is ended by force. It must not wait.

    """

    def __init__(self, last: Callable[[], object]) -> None:
        self._last = last
        self._lock = threading.RLock()  # the handler may interrupt its holder
        self._hear: _Hear | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The signals that the thread and the handler have seen; either of them may miss some.
        self._counts = [0, 0]
        self._total = 0
        self._first = 0.0
        self._second = self._noticed = False
        self._number = signal.SIGINT
        self._drain = 0.0
        self._deadline: float | None = None
        self._read, write = os.pipe()
        for fd in (self._read, write):
            os.set_blocking(fd, False)
        self._wake = Wake()
        for number in _NUMBERS:
            signal.signal(number, self._handle)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        _leave_to_children()
        threading.Thread(target=self._work, name="velo run signals", daemon=True).start()

    def bind(self, loop: asyncio.AbstractEventLoop, hear: _Hear, drain: float) -> None:
        """Hand signals to an event loop from now on, which ends within `drain` seconds of one."""
        with self._lock:
            self._loop, self._hear, self._drain = loop, hear, drain
            if self._total:
                self._tell(self._number)

    def _heard(self, source: int, number: int) -> None:
        with self._lock:
            self._counts[source] += 1
            if self._counts[source] <= self._total:
                return  # the other one was faster
            self._total = self._counts[source]
            now = time.monotonic()
            if self._total == 1:
                self._first, self._number = now, signal.Signals(number)
                self._end_within(self._drain + _SLACK)
            elif now - self._first < _SAME:
                return
            elif self._second or not self._noticed:
                self._leave(number)
            else:
                self._second = True
                self._end_within(_BOUND)
            self._tell(signal.Signals(number))

    def _tell(self, number: signal.Signals) -> None:
        hear = self._hear
        if self._loop is None or hear is None:
            return

        def noticed() -> None:
            self._noticed = True
            hear(number)

        with contextlib.suppress(RuntimeError):  # it is closed: the program is about to end
            self._loop.call_soon_threadsafe(noticed)

    def _end_within(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._wake.ring()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._heard(0, number)

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            left = None
            if self._deadline is not None:
                left = max(0.0, self._deadline - time.monotonic()) * 1000
            ready = [fd for fd, _ in poll.poll(left)]
            if not ready:
                self._leave(self._number)
            if self._wake.fileno() in ready:
                self._wake.hush()
            if self._read in ready:
                for number in os.read(self._read, 64):
                    if number in _NUMBERS:
                        self._heard(1, number)

    def _leave(self, number: int) -> None:
        with contextlib.suppress(Exception):
            self._last()
        os._exit(128 + number)


def _leave_to_children() -> None:
    """Have a process that an inline function forks begin with default signals.

    It would have the handlers of this one, and wake its event loop: `terminate()` on the child
    would end the command instead.
    """
    if _core.PROCESS_MODE:
        _core.default_in_children(list(_NUMBERS))  # before any code of Python runs there

    def in_child() -> None:
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asyncio._set_running_loop(None)

    after_fork(in_child)
