"""A look at the end of each module: no process, descriptor or shared memory more than at its begin.

Only what belongs to this process is looked at, so several may run tests side by side.
"""

import contextlib
import gc
import os
import sys

import psutil

from helpers import open_fds, until_sync
from velo._api import key_claims, sync
from workers import clients

__all__ = ["LASTING", "Belongings"]

# Processes and descriptors that stay for the whole session, on purpose.
LASTING = {"pids": set(), "fds": set()}


def _processes():
    """The processes below this one, without those that last."""
    found = []
    for child in psutil.Process().children():
        if child.pid not in LASTING["pids"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child, *child.children(recursive=True)]
    return found


def _segments():
    """The shared memory that has a name which velo could have given it: others have theirs too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("shmem_", "velo"))}


def _mapped():
    """How many pieces of velo's shared memory are mapped here."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:velo" in line for line in maps)


def _descriptors():
    if "ray" in sys.modules:
        return {}  # it opens and closes connections of its own as it likes
    return {fd: what for fd, what in open_fds().items() if fd not in LASTING["fds"]}


class Belongings:
    """What this process has now."""

    def __init__(self):
        """Look."""
        self.processes = {process.pid for process in _processes()}
        self.descriptors = _descriptors()
        self.segments = _segments()
        self.mapped = _mapped()

    def check(self, module):
        """Wait until there is no more than that, and fail when it does not come.

        Raises:
            AssertionError: It names the module, and says what is left.

        """
        vars(sync._local).clear()  # the event loop that `run_sync` keeps for this thread
        key_claims.give_back()
        gc.collect()
        clients.shutdown()
        gc.collect()
        # Those that were there before may end, so each kind is counted.
        until_sync(lambda: not self._more(), describe=lambda: f"{module} leaves {self._more()}")

    def _more(self):
        """What there is more than before, by its kind."""
        processes = [p for p in _processes() if p.pid not in self.processes]
        descriptors = _descriptors()
        more = {
            "processes": [f"{process.pid}: {_command(process)}" for process in processes],
            "descriptors": {
                fd: what for fd, what in descriptors.items() if self.descriptors.get(fd) != what
            }
            if len(descriptors) > len(self.descriptors)
            else {},
            "named shared memory": _segments() - self.segments,
            "shared memory": max(0, _mapped() - self.mapped),
        }
        return {kind: what for kind, what in more.items() if what}


def _command(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "ended"
