"""What a client has of each of its workers, and what happens when the link to one calls back."""

from __future__ import annotations

import functools
import math
import weakref
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._process import worker_logs

if TYPE_CHECKING:
    import asyncio

    from velo._process.client import Client

__all__ = ["Link", "attach"]


class Link:
    """One worker, as this client reaches it."""

    def __init__(self, number: int, worker: int, pid: int, end: _core.ClientLink) -> None:
        self.number = number
        self.worker = worker
        self.pid = pid
        self.end = end
        self.functions: set[int] = set()
        self.levels = b""
        self.leaving = False
        self.outgrown = False
        # When the last warning was of a stream here that holds the others up, in the loop's time.
        self.warned = -math.inf
        self.named: str | None = None
        # When streams came here last because their worker had outgrown its limit.
        self.refuge = -math.inf
        self.stall: float | None = None
        self.memory: int | None = None

    def define(self, number: int, definition: bytes) -> None:
        """Have the worker know a function under a number, if it does not yet."""
        if number not in self.functions:
            self.end.define(number, definition)
            self.functions.add(number)


def attach(link: Link, loop: asyncio.AbstractEventLoop, client: Client) -> None:
    """Have an event loop look after a link: its doorbell, and what it asks for.

    The link keeps neither of them alive.
    """
    end = link.end
    loop_of, end_of = weakref.ref(loop), weakref.ref(end)
    client_of, link_of = weakref.ref(client), weakref.ref(link)
    loop.add_reader(end.fileno(), end.on_doorbell)
    loop.add_reader(end.alarm_fileno(), end.nap_over)
    end.set_wake_soon(functools.partial(_wake_soon, loop_of, end_of))
    end.set_slow(functools.partial(_slow_step, loop_of, client_of, link_of))
    end.set_broken(functools.partial(_broken, loop_of, client_of, link_of))
    end.set_log(functools.partial(_log, loop_of, link.pid))


def _broken(
    loop_of: weakref.ref[asyncio.AbstractEventLoop],
    client_of: weakref.ref[Client],
    link_of: weakref.ref[Link],
) -> None:
    loop, client, link = loop_of(), client_of(), link_of()
    if loop is None or client is None or link is None or loop.is_closed():
        return
    loop.call_soon(client.give_up, link)


def _wake_soon(
    loop_of: weakref.ref[asyncio.AbstractEventLoop], end_of: weakref.ref[_core.ClientLink]
) -> None:
    loop, end = loop_of(), end_of()
    if loop is not None and end is not None:
        loop.call_soon(end.wake)


def _slow_step(
    loop_of: weakref.ref[asyncio.AbstractEventLoop],
    client_of: weakref.ref[Client],
    link_of: weakref.ref[Link],
    *step: Any,
) -> None:
    loop, client, link = loop_of(), client_of(), link_of()
    if loop is not None and not loop.is_closed() and client is not None and link is not None:
        loop.call_soon(client.on_slow_step, link, *step)  # not in the middle of a step


def _log(loop_of: weakref.ref[asyncio.AbstractEventLoop], pid: int, record: bytes) -> None:
    if (loop := loop_of()) is not None:
        # Handlers are not run in the middle of a step.
        loop.call_soon(worker_logs.deliver, pid, record)
