"""The stacks of a dying worker, written to a file that its supervisor reads afterwards."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys

__all__ = ["write_to"]


def write_to(report: int, asked: int) -> None:
    """Write the stacks of all threads to this descriptor when a signal ends the process.

    The watchdog's thread writes them at the signal `asked`, too. Other threads block that signal:
    it must not interrupt the system call in which one of them may be stuck.

    If a function enables `faulthandler` itself, the stacks go to the file that it has chosen.
    """
    try:
        faulthandler.enable(report, all_threads=True)
        faulthandler.register(asked, report, all_threads=True)
    except OSError as error:
        # The signal that asks for stacks would end the process.
        signal.signal(asked, signal.SIG_IGN)
        print(
            f"velo: worker process {os.getpid()} cannot say where it is stuck, should it be: "
            f"`sigaltstack` is refused ({error.strerror}); allow it in the sandbox (seccomp "
            "profile) that it runs in",
            file=sys.stderr,
        )
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [asked])  # threads to come inherit it
    os.register_at_fork(after_in_child=lambda: _leave(report, asked))


def _leave(report: int, asked: int) -> None:
    """In a process that a function has forked: what it writes as it dies is not the worker's."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [asked])
    faulthandler.unregister(asked)
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, report, inheritable=False)
        os.close(null)
