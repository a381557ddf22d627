"""What a worker keeps under keys, while its users come and go.

The supervisor says who may attach. The worker says when an attachment is over: that is for the
function to show, by asking for the event after the last one that was sent.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._function.context import stream_name
from velo._function.exceptions import log_failure
from velo._worker import introspection, logs
from velo._worker.detached import Parked

if TYPE_CHECKING:
    from velo._worker.main import Client

__all__ = ["Kept", "Keys", "Opening"]


class Opening:
    """A client's stream that is to be attached to a key."""

    def __init__(
        self,
        client: Client,
        keep: tuple[bytes, int, float | None, str],
        place: tuple[int, int],
        function: int,
        limits: tuple[int, int, bool, bool, bool],
        terms: tuple[tuple[float | None, float | None], str],
    ) -> None:
        self.client = client
        self.key, self.grant, self.timeout, self.shown = keep
        self.place = place
        self.function = function
        self.limits = limits
        self.terms = terms
        # It has let go before it was attached.
        self.leaves = False


class Kept:
    """One key's function."""

    def __init__(self, opening: Opening) -> None:
        self.key = opening.key
        # For those who look: the key as its user wrote it, whose name it has, when it began.
        self.shown = opening.shown
        _, self.name = opening.terms
        self.began = time.monotonic_ns()
        # The number of its last parking, and when that was.
        self.parking = self.parked_at = 0
        self.timeout = opening.timeout
        self.grant = 0
        self.kept: _core.Kept
        self.function: tuple[Callable[..., Any], bool]
        self.task: asyncio.Task[None] | None = None
        # Who is attached.
        self.user: Opening | None = None
        # Its input was ended: whoever is to attach begins anew when it is over.
        self.ending = False
        self.timer: asyncio.TimerHandle | None = None
        self.waiting: list[Opening] = []


class Keys:
    """All that a worker keeps.

    Args:
        seat: The line to the supervisor.
        function_of: Returns a client's function by its number, and whether it has a state.
        links: Returns the links to all clients.

    """

    def __init__(
        self,
        seat: _core.WorkerSeat,
        function_of: Callable[[Client, int], tuple[Callable[..., Any], bool]],
        links: Callable[[], list[_core.WorkerLink]],
    ) -> None:
        self._seat = seat
        self._function_of = function_of
        self._links = links
        self._kept: dict[bytes, Kept] = {}
        # Who is attached: link and slot.
        self._users: dict[tuple[int, int], Kept] = {}
        self._parked = Parked()
        self._retiring = False

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of all functions."""
        return [kept.task for kept in self._kept.values() if kept.task is not None]

    # The client.

    def open(self, opening: Opening) -> None:
        """Attach a client's stream, or begin what it is to be attached to."""
        kept = self._kept.get(opening.key)
        if kept is None:
            self._begin(opening)
        elif kept.user is None and not kept.ending:
            self._attach(kept, opening)
        else:
            kept.waiting.append(opening)  # it has crossed with the end

    def detach(self, client: Client, place: tuple[int, int]) -> None:
        """Let go of a client's stream, when what it has sent is handled."""
        kept = self._users.get((client.number, place[0]))
        if kept is not None and kept.user is not None and kept.user.place == place:
            client.link.detach(kept.kept, place)
            return
        for kept in self._kept.values():
            for opening in kept.waiting:
                opening.leaves |= opening.client is client and opening.place == place

    def leave(self, client: Client) -> None:
        """Let go of all streams of a client that is gone."""
        for kept in list(self._kept.values()):
            for opening in kept.waiting:
                opening.leaves |= opening.client is client
            if kept.user is not None and kept.user.client is client:
                kept.kept.leave()

    # The supervisor.

    def release(self, key: bytes, grant: int) -> None:
        """Say when an attachment is over that nobody uses; at once if there is none."""
        kept = self._kept.get(key)
        if kept is None:
            self._seat.key_free(key, grant, False)
        elif any(opening.grant == grant for opening in kept.waiting):
            for opening in kept.waiting:
                opening.leaves |= opening.grant == grant
        elif kept.user is not None:
            if kept.grant == grant:
                kept.kept.leave()
        elif grant >= kept.grant:
            kept.grant = grant  # what is said of its end is about this one
            self._seat.key_free(key, grant, True)

    def retire(self) -> None:
        """Keep nothing any longer than somebody is attached to it."""
        self._retiring = True
        for kept in list(self._kept.values()):
            self._expire(kept)

    # Somebody looks.

    def parked_since(self, number: int, longest: int) -> str:
        """Say what is parked here: see `Parked.since`."""
        return self._parked.since(number, longest)

    def find_parked(self, which: str) -> list[introspection.Opened]:
        """Return what is parked here under this key, with this name or at this place."""
        return [stream for _, stream in self._parked.find(which)]

    def end_parked(self, which: str) -> list[introspection.Opened]:
        """End the input of what is parked here, as when its time is over; returns what that was."""
        ended = list(self._parked.find(which))
        for kept, _ in ended:
            if kept.timer is not None:
                kept.timer.cancel()
            self._expire(kept)
        return [stream for _, stream in ended]

    # The functions.

    def _begin(self, opening: Opening) -> None:
        loop = asyncio.get_running_loop()
        kept = self._kept[opening.key] = Kept(opening)
        self._enter(kept, opening)
        client, link = opening.client, opening.client.link
        tell = functools.partial(self._tell, kept)
        port, kept.kept = link.keep(loop, opening.place, opening.limits, opening.terms, tell)

        def load() -> tuple[Callable[..., Any], bool]:
            kept.function = self._function_of(client, opening.function)
            return kept.function

        pump = port.load_and_start(load)
        if pump is None:
            return
        _, name = opening.terms
        context = contextvars.copy_context()
        context.run(logs.link_of_stream.set, _LinkOfUser(kept, self._links))
        context.run(stream_name.set, name)
        kept.task = asyncio.Task(pump, loop=loop, name=name, context=context)
        self._show(kept, opening)
        port.attach(pump, kept.task, context)
        if opening.leaves and kept.user is opening:
            kept.kept.leave()

    def _enter(self, kept: Kept, opening: Opening) -> None:
        kept.user, kept.grant = opening, opening.grant
        self._users[opening.client.number, opening.place[0]] = kept

    def _show(self, kept: Kept, opening: Opening) -> None:
        """Have the client's streams be all that it uses, as those see it who look."""
        client, (slot, _) = opening.client, opening.place
        if kept.task is not None:
            client.tasks[slot] = kept.task
            client.opened[slot] = (opening.function, introspection.moment(), kept.shown)

    def _attach(self, kept: Kept, opening: Opening) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
        self._parked.leave(kept)
        # It is the same, so that nobody has to load it again to know its name.
        opening.client.functions[opening.function] = kept.function
        self._enter(kept, opening)
        self._show(kept, opening)
        opening.client.link.attach(kept.kept, opening.place, opening.limits)
        if opening.leaves and kept.user is opening:
            kept.kept.leave()

    def _tell(self, kept: Kept, over: bool, error: BaseException | None) -> None:
        """Hear that an attachment is over, or the function; in the middle of its step."""
        loop = asyncio.get_running_loop()
        user, kept.user = kept.user, None
        if user is not None:
            slot, _ = user.place
            self._users.pop((user.client.number, slot), None)
            user.client.tasks.pop(slot, None)
            user.client.opened.pop(slot, None)
        if over:
            del self._kept[kept.key]
            self._parked.leave(kept)
            if kept.timer is not None:
                kept.timer.cancel()
            if error is not None:
                loop.call_soon(log_failure, error)
        else:
            self._parked.enter(kept)
        self._seat.key_free(kept.key, kept.grant, not over)
        if kept.waiting:
            waiting, kept.waiting = kept.waiting, []
            loop.call_soon(self._open_all, waiting)
        elif self._retiring and not over:
            loop.call_soon(self._expire, kept)
        elif kept.timeout is not None and not over:
            kept.timer = loop.call_later(kept.timeout, self._expire, kept)

    def _open_all(self, waiting: list[Opening]) -> None:
        for opening in waiting:
            self.open(opening)

    def _expire(self, kept: Kept) -> None:
        kept.timer = None
        if kept.user is None and not kept.ending and self._kept.get(kept.key) is kept:
            kept.ending = True
            kept.kept.end_input()


class _LinkOfUser:
    """Where what a kept function logs goes: to who is attached, or to all."""

    def __init__(self, kept: Kept, links: Callable[[], list[_core.WorkerLink]]) -> None:
        self._kept = kept
        self._links = links

    def log(self, record: bytes) -> bool:
        """Send a log record; false when somebody does not read them."""
        user = self._kept.user
        sent = True
        for link in self._links() if user is None else [user.client.link]:
            sent &= link.log(record)
        return sent
