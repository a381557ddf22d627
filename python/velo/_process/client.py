"""The client of process mode: it opens streams on workers, and moves them between workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Coroutine
from logging import INFO
from typing import Any, TypeVar

from velo import _core
from velo._config import StreamConfig
from velo._diagnostics import lifecycle_log, oom, slow_steps
from velo._function.reference import Reference
from velo._process import recovery, supervisors, worker_death, worker_logs
from velo._process.connection import Connection
from velo._process.key_requests import KeyRequests
from velo._process.links import Link, attach
from velo._process.placement import Placement
from velo._process.surroundings import here
from velo.errors import PoolError, RingCorrupted

__all__ = ["Client"]

T = TypeVar("T", int, float)

_NO_LIMITS = (None, None, None)

_levels = worker_logs.Levels()

# Numbers for links whose supervisor is gone.
_numbers = itertools.count(1)

# Seconds between two check-ups of links: a worker that overwrites its link may suppress doorbells.
_CHECK_UP = 0.5

# A worker that outgrows its limit keeps its streams if some moved to it within this many seconds.
_SETTLED = 60.0


class Client:
    """The workers that one event loop uses.

    Links outlive the connection to a standalone supervisor, which they do not need. The client
    connects again when it needs another link.

    Args:
        loop: The event loop. This does not keep it alive.
        address: Of a standalone supervisor. None: the supervisor of this process.
        streams_at: Returns how many streams this process has open at an address.

    Attributes:
        links: The links by number.
        key_requests: The requests for keys.

    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str | None,
        streams_at: Callable[[str | None], int],
    ) -> None:
        self._loop = weakref.ref(loop)
        self._address = address
        self._streams_at = streams_at
        self._connection = Connection(loop, address, self)
        self.links: dict[int, Link] = {}
        self.key_requests = KeyRequests(self._connection, self)
        self._placement = Placement(self._connection, self.links)
        self._checking = False
        self._tasks: set[asyncio.Task[None]] = set()
        # The link that streams are leaving, during `send_away`.
        self.left: Link | None = None

    def close(self) -> None:
        """Disconnect from the supervisor, and give back all links."""
        for task in self._tasks:
            task.cancel()
        for link in list(self.links.values()):
            self._drop(link)
        self._connection.disconnect()

    # Streams.

    async def open(self, function: Reference, config: StreamConfig, name: str) -> _core.Opened:
        """Open a stream on a worker.

        Raises:
            PoolError: When there is no worker, and none could be started.

        """
        loop = asyncio.get_running_loop()
        while True:
            link = await self._link_for(function, config)
            if self._connection.most_streams:
                self.check_quota()
            if (opened := self.open_on(link, loop, function, config, name)) is not None:
                return opened

    async def open_lane(
        self,
        function: Reference,
        config: StreamConfig,
        name: str,
        most: int,
        avoid: Link | None = None,
    ) -> _core.Opened:
        """Open a lane for many keys, with at most `most` of their events in flight.

        It is opened on another link than `avoid`, if possible.

        Raises:
            PoolError: When there is no worker, and none could be made.

        """
        loop = asyncio.get_running_loop()
        limits = function.lane_limits(config, most)
        while True:
            link = await self._link_for(function, config, avoid)
            if self._connection.most_streams:
                self.check_quota()
            self._tell_news(link)
            origin = (function, config)
            opened = link.end.open(loop, function.number, limits, name, origin=origin, lane=True)
            if opened is not None:
                self._opened_on(link, function, config, loop)
                return opened
            self._let_go(link)

    async def take_over(
        self, stream: _core.Recovery, function: Reference, config: StreamConfig, avoid: Link | None
    ) -> None:
        """Move a stream to a worker, if possible to another one than `avoid`.

        Raises:
            PoolError: When there is no worker, and none could be started.

        """
        while stream.wanted:
            link = await self._link_for(function, config, avoid)
            self._tell_news(link)
            if link.end.reopen(stream, function.number):
                lifecycle_log.stream(INFO, stream.name, "goes on in worker process %d", link.pid)
                self._opened_on(link, function, config, asyncio.get_running_loop())
                if avoid is not None and avoid.outgrown:
                    link.refuge = asyncio.get_running_loop().time()
                return
            link.leaving = True  # it takes no more streams; the supervisor will report why

    async def has_better(self, left: Link, function: Reference, config: StreamConfig) -> bool:
        """Make another worker ready, and return whether it is better than the one to leave.

        Raises:
            PoolError: When there is no other worker, and none could be started.

        """
        link = await self._link_for(function, config, left)
        return link is not left and (left.leaving or not link.end.slow)

    async def _link_for(
        self, function: Reference, config: StreamConfig, avoid: Link | None = None
    ) -> Link:
        """Choose a worker, and define the function there."""
        connection = self._connection
        if connection.supervisor is None:
            try:
                connection.connect()
            except supervisors.NoSupervisor:
                if not self.links:
                    raise
        if config.preload:
            connection.preload(config.preload)
        definition = function.definition
        if function.preload:
            connection.preload(function.preload)
        link = await self._placement.choose(config.workers or _core.usable_cores(), avoid)
        link.define(function, definition)
        return link

    def open_now(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Reference,
        config: StreamConfig,
        name: str,
    ) -> _core.Opened | None:
        """Open a stream without waiting, if a free worker knows the function. None: use `open`.

        After a pause, the code of this path is no longer in the CPU's caches, so it is short.
        """
        if self._connection.supervisor is None or self._connection.most_streams:
            return None
        link = self._placement.choose_free(config.workers or _core.usable_cores())
        if link is None or function.number not in link.functions:
            return None
        return self.open_on(link, loop, function, config, name)

    def open_on(
        self,
        link: Link,
        loop: asyncio.AbstractEventLoop,
        function: Reference,
        config: StreamConfig,
        name: str,
        session: _core.SessionGrant | None = None,
    ) -> _core.Opened | None:
        """Open a stream on a link, or attach it to a session there.

        Args:
            link: The link.
            loop: The event loop.
            function: The function that the stream runs.
            config: Its settings.
            name: The stream's name.
            session: The grant of the session's key. None: the stream is no attachment.

        Returns:
            The stream. None: the link takes no more streams.

        """
        self._tell_news(link)
        terms = origin = None
        if config.recover != "none":
            terms = recovery.terms(self, function, config)
        else:
            origin = (function, config)
        opened = link.end.open(
            loop,
            function.number,
            function.limits,
            name,
            origin=origin,
            recovery=terms,
            session=session,
        )
        if opened is None:
            self._let_go(link)
        else:
            self._opened_on(link, function, config, loop)
        return opened

    def _opened_on(
        self, link: Link, function: Reference, config: StreamConfig, loop: asyncio.AbstractEventLoop
    ) -> None:
        if function.budgets != _NO_LIMITS:
            self._watch(link, config)
        if not self._checking:
            self._check_up_later(loop)

    def _let_go(self, link: Link) -> None:
        """Give back a link that takes no more streams, once it has none."""
        link.leaving = True  # if it has some, the supervisor will report why
        if link.end.dead:
            self.give_up(link)
        elif link.number in self.links and not link.end.streams:
            self._drop(link)
            self._tell_supervisor(link, lambda supervisor: supervisor.release(link.number))

    def _check_up_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._checking = True
        loop.call_later(_CHECK_UP, _check_up, weakref.ref(self))

    def check_up(self) -> None:
        """Check up the links with open streams, again and again while there are any."""
        self._checking = False
        busy = [link for link in self.links.values() if link.end.streams]
        for link in busy:
            link.end.check_up()
            link.forget()
        loop = self._loop()
        if busy and loop is not None and not loop.is_closed():
            self._check_up_later(loop)

    def _watch(self, link: Link, config: StreamConfig) -> None:
        """Let the supervisor watch a worker whose streams have limits."""
        stall = _least_of(link.stall, config.stall_timeout, config.event_timeout)
        memory = _least_of(link.memory, config.max_worker_memory)
        unwatched = link.end.take_unwatched()
        if unwatched or (stall, memory) != (link.stall, link.memory):
            link.stall, link.memory = stall, memory
            self._tell_supervisor(
                link, lambda supervisor: supervisor.watch(link.number, stall, memory)
            )

    def _tell_supervisor(
        self, link: Link, order: Callable[[_core.SupervisorClient], object]
    ) -> None:
        """Give an order about a link to its supervisor, if there is one."""
        supervisor = self._connection.supervisor
        if supervisor is not None and link.number >= 0:
            with contextlib.suppress(PoolError):  # it has ended, which was not noticed yet
                order(supervisor)

    def _tell_news(self, link: Link) -> None:
        """Send a worker the changes of this process since the last stream was opened there."""
        if link.gone:
            link.forget()
        surroundings = here.packed(shared=self._address is not None)
        if surroundings is not link.surroundings:
            link.end.set_surroundings(surroundings)
            link.surroundings = surroundings
        levels = _levels.packed()
        if levels is not link.levels:
            link.end.set_levels(levels)
            link.levels = levels

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the user's tasks."""
        task = asyncio.get_running_loop().create_task(work, name="velo recovery")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def send_away(self, number: int, streams: list[str] | None = None) -> int:
        """Move streams of a link to other workers.

        Only streams with `recover="replay"` can move. They go on where they are until another
        worker is ready; then the old one cancels them.

        Args:
            number: The link.
            streams: The names of the streams. None: all; then the worker takes no more streams.

        Returns:
            The number of streams that will move, if there is a better worker for them.

        """
        link = self.links[number]
        link.leaving |= streams is None
        return self._send_away(link, streams)

    def _send_away(self, link: Link, streams: list[str] | None = None, *, slow: bool = True) -> int:
        self.left = link
        try:
            return link.end.send_away(streams, slow)
        finally:
            self.left = None

    def check_quota(self) -> None:
        """Refuse a stream beyond the supervisor's quota for one process.

        The quota is a promise between programs that trust each other: the supervisor sets it, and
        every client keeps to it.

        Raises:
            PoolError: When this process has reached the quota.

        """
        quota = self._connection.most_streams
        if self._streams_at(self._address) >= quota:
            raise PoolError(
                f"this process has {quota} open streams, which is the quota of one client of the "
                f"supervisor at `{self._address}` (`--client-streams {quota}`)"
            )

    # Reports of the supervisor.

    def on_connected(self) -> None:
        """Leave the workers of a supervisor before this one."""
        for link in self.links.values():
            link.leaving = True

    def on_heard(self) -> None:
        """Let streams that wait for a worker choose again."""
        self._placement.on_heard()

    def on_report(self, report: _core.Report) -> None:
        """Act on a report of the supervisor."""
        match report:
            case _core.Report.Link():
                self._on_link(report)
            case _core.Report.Refused(request=request, why=why):
                error = None if why is None else PoolError(f"no worker process: {why}")
                self._placement.on_answer(request, error)
            case _core.Report.KeyGranted():
                self.key_requests.on_granted(report)
            case _core.Report.KeyRefused(request=request, why=why):
                self.key_requests.on_refused(request, why)
            case _core.Report.KeyGone(request=request):
                self.key_requests.on_ended(request)
            case _core.Report.Retired(link=number):
                self._on_retired(number)
            case _core.Report.Leaving(link=number):
                self._on_leaving(number)
            case _core.Report.Died(link=number, death=death):
                self._on_died(number, death)
            case _:
                raise AssertionError(f"unknown report {report!r}")

    def _on_link(self, report: _core.Report.Link) -> None:
        link = Link(report.link, report.worker, report.pid, report.end)
        self.links[link.number] = link
        lifecycle_log.workers.debug("worker process %d is ready for streams", link.pid)
        oom.remember()
        loop = self._loop()
        if loop is not None:
            attach(link, loop, self)
        self._placement.on_answer(report.request, link)

    def _on_retired(self, number: int) -> None:
        if (link := self.links.get(number)) is not None:
            self._drop(link)
            lifecycle_log.workers.debug("worker process %d is let go", link.pid)
            # The supervisor takes back idle links only. This fails no stream, unless the worker has
            # overwritten their count.
            link.end.fail(
                lambda stream, number, in_flight: RingCorrupted(
                    f"stream `{stream}` has lost its link: the worker (pid {link.pid}) wrote over "
                    "the count of its streams"
                ),
                lambda stream, error: stream.fail(error),
            )

    def give_up(self, link: Link) -> None:
        """Give back a link with invalid data. Its streams have failed; its worker is replaced."""
        if self.links.get(link.number) is link:
            self._drop(link)
            self._tell_supervisor(link, lambda supervisor: supervisor.release_broken(link.number))
            self.on_heard()

    def _on_leaving(self, number: int) -> None:
        """Leave a worker that has outgrown its limit: streams that can move do.

        Streams that have just moved there have outgrown this worker too, and stay.
        """
        if (link := self.links.get(number)) is not None:
            link.leaving = link.outgrown = True
            if asyncio.get_running_loop().time() - link.refuge >= _SETTLED:
                self._send_away(link)

    def on_slow_step(
        self, link: Link, stream: str, seconds: float, held_up: bool, habit: bool
    ) -> None:
        if habit:  # the other streams of the worker move
            self._send_away(link, slow=False)
        # On a busy machine any function may have a slow step. It must not hide a slow function.
        now = asyncio.get_running_loop().time()
        again = habit and stream != link.named and link.end.streams > 1
        if again or (held_up and now - link.warned >= slow_steps.WARN_EVERY):
            link.warned, link.named = now, stream
            slow_steps.warn_of_neighbour(stream, seconds)

    def _on_died(self, number: int, death: _core.WorkerDeath) -> None:
        link = self.links.get(number)
        if link is None:
            return
        self._drop(link)
        lifecycle_log.workers.debug("worker process %d is gone", link.pid)
        replace = functools.partial(recovery.begin_elsewhere, self)
        worker_death.tell(link, death, replace)

    def on_lost(self, why: str) -> None:
        """Go on without the supervisor: the next stream of this event loop begins anew."""
        if self._address is not None:
            return self._on_left(why)
        for link in list(self.links.values()):
            self._on_died(link.number, _core.WorkerDeath.unexplained("nothing"))
        self._placement.on_lost(PoolError(why))
        self.key_requests.on_lost(PoolError(why))

    def _on_left(self, why: str) -> None:
        """Go on without a standalone supervisor: its workers serve the links that there are."""
        lifecycle_log.workers.debug(why)
        links = list(self.links.values())
        self.links.clear()
        for link in links:
            if link.number >= 0:  # the next supervisor's numbers are its own
                link.number = -next(_numbers)
                self._watch_process(link)
            self.links[link.number] = link
        self._placement.on_lost(None)
        self.key_requests.on_lost(None)

    def _watch_process(self, link: Link) -> None:
        """Learn of the death of a worker whose supervisor is gone."""
        loop, process = self._loop(), link.end.process_fileno()
        if loop is not None and process is not None:
            gone = functools.partial(self._on_orphan_died, link)
            loop.add_reader(process, gone)

    def _on_orphan_died(self, link: Link) -> None:
        # The link shows whether a stream of this client ran. Without a supervisor, that is all.
        ran = "here" if link.end.culprit() is not None else "nothing"
        self._on_died(link.number, _core.WorkerDeath.unexplained(ran))
        self.on_heard()

    def _drop(self, link: Link) -> None:
        if self.links.pop(link.number, None) is not None:
            loop = self._loop()
            if loop is not None and not loop.is_closed():
                loop.remove_reader(link.end.fileno())
                loop.remove_reader(link.end.alarm_fileno())
                if link.number < 0 and (process := link.end.process_fileno()) is not None:
                    loop.remove_reader(process)


def _least_of(*limits: T | None) -> T | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _check_up(client_of: weakref.ref[Client]) -> None:
    if (client := client_of()) is not None:
        client.check_up()
