"""The stacks of a dying worker, written to a file that its supervisor reads afterwards."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal

__all__ = ["write_to"]


def write_to(report: int, asked: int) -> None:
    """Write the stacks of all threads to this descriptor when a signal ends the process.

    The watchdog's thread writes them at the signal `asked`, too. Other threads block that signal:
    it must not interrupt the system call in which one of them may be stuck.

    If a function enables `faulthandler` itself, the stacks go to the file that it has chosen.
    """
    faulthandler.enable(report, all_threads=True)
    faulthandler.register(asked, report, all_threads=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [asked])  # new threads inherit it
    os.register_at_fork(after_in_child=lambda: _leave(report))


def _leave(report: int) -> None:
    """Redirect the report of a process that a function has forked: it is not the worker's."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, report, inheritable=False)
        os.close(null)
