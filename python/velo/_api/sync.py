"""Running a stream function from code without an event loop."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from velo._system import after_fork
from velo.errors import VeloError

__all__ = ["run"]

T = TypeVar("T")


def run(start: Callable[[], Coroutine[Any, Any, T]], function: str, method: str) -> T:
    """Run a coroutine in this thread's own event loop.

    Args:
        start: Creates the coroutine.
        function: The name of the stream function, for the error.
        method: What is called on it where an event loop runs, for the error.

    Raises:
        VeloError: When an event loop runs in this thread already.

    """
    if asyncio._get_running_loop() is not None:
        how = "await" if method == "run" else "async for ... in"
        raise VeloError(f"an event loop is running: use `{how} {function}.{method}(...)` here")
    return _runner().run(start(), context=contextvars.copy_context())


class _SyncLoop:
    """The event loop of a thread, which is kept so that its links to workers stay warm."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()

    def close(self) -> None:
        """Close the loop and its clients."""
        if not self.loop.is_closed():
            if (clients := sys.modules.get("velo._process.clients")) is not None:
                clients.close_clients(self.loop)
            self.runner.close()

    def __del__(self) -> None:  # its thread has ended
        self.close()


_local = threading.local()
_abandoned: list[threading.local] = []


def _runner() -> asyncio.Runner:
    own: _SyncLoop | None = getattr(_local, "own", None)
    if own is None or own.loop.is_closed():
        own = _local.own = _SyncLoop()
    return own.runner


def _close_runner() -> None:
    if (own := getattr(_local, "own", None)) is not None:
        own.close()


def _forget_runners() -> None:
    """Forget, in a forked child, the event loops of the parent."""
    global _local
    # They stay referenced: closing one would close the parent's, with which it shares a selector.
    _abandoned.append(_local)
    _local = threading.local()


after_fork(_forget_runners)
atexit.register(_close_runner)
