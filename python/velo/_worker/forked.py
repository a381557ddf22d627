"""What a process has of its worker that a function forks: nothing that the two would share.

`multiprocessing`, `os.fork` and what is built on them copy the whole worker: its event loop, its
signal handlers, its log handler, its rings. The Rust half makes memory and descriptors the child's
own (`velo_shm::fork`); here it loses the rest before any code of its own runs, and ends where it
would go on as a second worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from velo import _core
from velo._diagnostics import slow_steps

__all__ = ["end_if_forked", "leave", "separate"]

# What a process ends with that came back to the event loop of its worker.
EXIT_CODE = 70

# Signals that a worker handles, and its children do not.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# The worker that this process is, or was forked from.
_worker = os.getpid()


def separate(loop: Any, selector: Any, give_back: Callable[[], None], served: int) -> None:
    """Have processes that this worker forks be processes of their own.

    Args:
        loop: Its event loop.
        selector: What that waits with.
        give_back: What gives a process its own logging back.
        served: The process that the worker's supervisor is, or is in.

    """
    global _worker
    _worker = os.getpid()
    _core.default_in_children(list(_SIGNALS))
    # Of the selector and the loop's own socket pair, through which signals wake it, too.
    private = [selector.fileno()]
    private += [end.fileno() for end in (loop._csock, loop._ssock)]
    _core.keep_from_children(private)

    def in_child() -> None:
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        for number in [*loop._signal_handlers, *_SIGNALS]:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        give_back()
        _core.set_title(f"velo: child of worker {_worker} of {served}")
        slow_steps.in_worker = False
        asyncio._set_running_loop(None)
        # Other tasks had their turn coming: it comes in the worker.
        turns = max(1, len(loop._ready))
        loop._ready.clear()
        loop._ready.extend(asyncio.Handle(came_back, (), loop) for _ in range(turns))
        selector.select = selector.process = came_back

    os.register_at_fork(after_in_child=in_child)


def came_back(*_: object) -> NoReturn:
    """End a forked process that has come back to the event loop of its worker."""
    leave(None, None)


def leave(function: str | None, error: BaseException | None) -> NoReturn:
    """End a forked process, by what it came out of a stream function with.

    Exit handlers are the worker's: as with `multiprocessing`, none is run.

    Args:
        function: The function; None if it was left some other way.
        error: What the function raised; None if it went on as if it were in the worker.

    """
    code = EXIT_CODE
    try:
        if isinstance(error, SystemExit):
            code = _code_of(error)
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        else:
            whose = f"the stream function `{function}`" if function else "a stream function"
            print(
                f"velo: process {os.getpid()}, forked by {whose}, went on as if it were worker "
                f"process {_worker}, and was ended (exit code {EXIT_CODE}); end it by `os._exit`, "
                "or use `multiprocessing` or `subprocess`",
                file=sys.stderr,
            )
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def end_if_forked(error: BaseException) -> None:
    """In a forked process that an exception has carried out of its worker's event loop: end it."""
    if os.getpid() != _worker:
        leave(None, error)


def _code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1
