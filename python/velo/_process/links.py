"""The links of a client to its workers, and their calls back to it."""

from __future__ import annotations

import functools
import math
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from velo import _core
from velo._process import worker_logs

if TYPE_CHECKING:
    import asyncio

    from velo._function.reference import Reference

__all__ = ["Link", "attach"]


class Link:
    """The link of this client to one worker.

    Attributes:
        number: Its number; negative once the supervisor is gone.
        worker: The number of the worker.
        pid: The worker's process id.
        end: The client's end of the shared memory.
        functions: The numbers of the functions that the worker knows.
        leaving: Whether it takes no more streams.
        outgrown: Whether its worker has outgrown `max_worker_memory`.

    """

    def __init__(self, number: int, worker: int, pid: int, end: _core.ClientLink) -> None:
        self.number = number
        self.worker = worker
        self.pid = pid
        self.end = end
        self.functions: set[int] = set()
        self.levels = b""
        self.surroundings = b""
        # Functions that the worker knows and this process has dropped; sent as a stream opens.
        self.gone: list[int] = []
        self.leaving = False
        self.outgrown = False
        # When the last warning was about a slow stream here, in the loop's time.
        self.warned = -math.inf
        self.named: str | None = None
        # When streams last moved here because their worker had outgrown its limit.
        self.refuge = -math.inf
        self.stall: float | None = None
        self.memory: int | None = None

    def define(self, function: Reference, definition: bytes) -> None:
        """Send a function to the worker, if it does not know it yet.

        The worker forgets the function once this process has dropped it.
        """
        if function.number not in self.functions:
            self.end.define(function.number, definition)
            self.functions.add(function.number)
            function.known_by.append(weakref.ref(self))

    def forget(self) -> None:
        """Let the worker forget the functions that this process has dropped."""
        while self.gone:
            number = self.gone.pop()
            self.functions.discard(number)
            self.end.forget(number)


class LinkOwner(Protocol):
    """The client, as far as its links call it."""

    def give_up(self, link: Link) -> None:
        """Give back a link with invalid data."""

    def on_slow_step(
        self, link: Link, stream: str, seconds: float, held_up: bool, habit: bool
    ) -> None:
        """Note that a step of a stream held its worker for a long time."""


def attach(link: Link, loop: asyncio.AbstractEventLoop, client: LinkOwner) -> None:
    """Let an event loop serve a link: its doorbell, its timer and its calls.

    The link keeps neither the event loop nor the client alive.
    """
    end = link.end
    loop_of, end_of = weakref.ref(loop), weakref.ref(end)
    client_of, link_of = weakref.ref(client), weakref.ref(link)
    loop.add_reader(end.fileno(), end.on_doorbell)
    loop.add_reader(end.alarm_fileno(), end.on_alarm)
    end.set_wake_soon(functools.partial(_wake_soon, loop_of, end_of))
    end.set_slow(functools.partial(_slow_step, loop_of, client_of, link_of))
    end.set_broken(functools.partial(_broken, loop_of, client_of, link_of))
    end.set_log(functools.partial(_log, loop_of, link.pid))


def _broken(
    loop_of: weakref.ref[asyncio.AbstractEventLoop],
    client_of: weakref.ref[LinkOwner],
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
    client_of: weakref.ref[LinkOwner],
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
