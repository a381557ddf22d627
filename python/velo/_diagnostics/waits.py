"""What this process waits for now: servers that are away, and calls of sources and sinks."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

__all__ = ["Wait", "begin", "end", "waits"]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Wait:
    """Something that is waited for.

    Attributes:
        of: The name of the source or the sink.
        what: What is waited for: a call such as "`flush`", or why a server is away.
        server: The server that is away; None: it is a call.

    """

    of: str
    what: str
    server: str | None = None


# A wait is over at the latest when nobody has it any more.
_waits: weakref.WeakSet[Wait] = weakref.WeakSet()
_lock = threading.Lock()


def begin(of: str, what: str, server: str | None = None) -> Wait:
    """Note that a wait begins, in any thread; see `Wait`."""
    wait = Wait(of, what, server)
    with _lock:
        _waits.add(wait)
    return wait


def end(wait: Wait | None) -> None:
    """Note that a wait is over, if there is one."""
    if wait is not None:
        with _lock:
            _waits.discard(wait)


def waits() -> list[Wait]:
    """Give all that is waited for now."""
    with _lock:
        return list(_waits)
