"""Signals of a command: they are its own, and not those of processes that functions start in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from velo import _core

__all__ = ["leave_to_children"]

_OURS = (signal.SIGINT, signal.SIGTERM)


def leave_to_children() -> None:
    """Have a process that an inline function forks begin with default signals.

    It would have the handlers of this one, and wake its event loop: `terminate()` on the child
    would end the command instead.
    """
    _core.default_in_children(list(_OURS))

    def in_child() -> None:
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asyncio._set_running_loop(None)

    os.register_at_fork(after_in_child=in_child)
