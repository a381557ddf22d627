"""One fault: a signal to one process, at a random instant of a phase."""

import asyncio
import contextlib
import os
import signal
import threading
import time

from places import gone

__all__ = ["FaultInjection"]

# How long a stopped process stays so at most; seconds.
_STOPPED = 0.03
# How long a killed process may take to be gone, on a busy machine; seconds.
_DYING = 30.0


class FaultInjection:
    """Hits one process once, from a thread of its own, some time after `begin`.

    Attributes:
        at: When it hit, by `time.monotonic`, or None.

    """

    def __init__(self, rng, how, seconds, victims, then=lambda: None):
        """Hit one of what `victims()` returns within `seconds`; `how` is "kill" or "stop"."""
        self.at = None
        self._rng = rng
        self._how = how
        self._seconds = seconds
        self._victims = victims
        self._then = then
        self._thread = None

    def begin(self):
        """The fault may come from now on. Await the returned future to wait until it has."""
        loop = asyncio.get_running_loop()
        injected = loop.create_future()
        victims = self._victims()
        delay = self._rng.uniform(0, self._seconds)
        stopped = self._rng.uniform(0.001, _STOPPED)
        pick = self._rng.random()

        def inject():
            time.sleep(delay)
            if victims:
                self.at = time.monotonic()
                self._hit(victims[int(pick * len(victims))], stopped)
            with contextlib.suppress(RuntimeError):  # the loop is closed when a run hangs
                loop.call_soon_threadsafe(lambda: injected.done() or injected.set_result(None))
            self._then()

        self._thread = threading.Thread(target=inject, name="fault")
        self._thread.start()
        return injected

    def _hit(self, pid, stopped):
        with contextlib.suppress(ProcessLookupError):
            if self._how == "kill":
                os.kill(pid, signal.SIGKILL)
                gone([pid], _DYING)  # nobody can mend what still looks alive
                return
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stopped)
            os.kill(pid, signal.SIGCONT)

    def over(self):
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()
