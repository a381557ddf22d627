"""Running a stream function from code that has no event loop."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, TypeVar

from velo.errors import VeloError

if TYPE_CHECKING:
    from velo._api.function import StreamFn

__all__ = ["run"]

In = TypeVar("In")
Out = TypeVar("Out")


def run(fn: StreamFn[In, Out], events: Iterable[In] | AsyncIterable[In]) -> list[Out]:
    """Run the events through a new stream, in this thread's own event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _runner().run(fn.run(events))
    raise VeloError(f"an event loop is running: use `await {fn._name}.run(...)` here")


class _SyncLoop:
    """A thread's own event loop: kept, so that its links to workers stay warm."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()

    def close(self) -> None:
        """Close the loop, and what belongs to it."""
        if not self.loop.is_closed():
            if (client := sys.modules.get("velo._process.clients")) is not None:
                client.close_clients(self.loop)
            self.runner.close()

    def __del__(self) -> None:  # its thread has ended
        self.close()


_local = threading.local()
_abandoned: list[threading.local] = []


def _runner() -> asyncio.Runner:
    kept: _SyncLoop | None = getattr(_local, "kept", None)
    if kept is None or kept.loop.is_closed():
        kept = _local.kept = _SyncLoop()
    return kept.runner


def _close_runner() -> None:
    if (kept := getattr(_local, "kept", None)) is not None:
        kept.close()


def _forget_runners() -> None:
    """Let go, in a forked child, of event loops whose descriptors are the parent's."""
    global _local
    # Kept for good: closing one would change the parent's, with whom its selector is shared.
    _abandoned.append(_local)
    _local = threading.local()


os.register_at_fork(after_in_child=_forget_runners)
atexit.register(_close_runner)
