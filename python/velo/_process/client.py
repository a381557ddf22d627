"""The client of process mode: what it says to its supervisor, and what it hears from it."""

from __future__ import annotations

import asyncio
import functools
import itertools
import warnings
import weakref
from collections.abc import Coroutine
from logging import INFO
from typing import Any, TypeVar

from velo import _core
from velo._config import StreamConfig
from velo._diagnostics import lifecycle_log, oom, slow_steps
from velo._function.reference import Reference, import_paths
from velo._process import placement, recovery, supervisors, worker_death, worker_logs
from velo._process.key_requests import Grants
from velo._process.links import Link, attach
from velo.errors import PoolError, RingCorrupted

__all__ = ["Client"]

T = TypeVar("T", int, float)

_NO_LIMITS = (None, None, None)

_levels = worker_logs.Levels()

# Names for links whose supervisor is gone.
_numbers = itertools.count(1)

# Seconds between two looks at what a worker that writes over its link could make this side miss.
_CHECK_UP = 0.5

# Streams whose workers outgrow their limit within so many seconds of a move are not moved again.
_SETTLED = 60.0

# How many seconds a supervisor may take to greet.
_HELLO_BOUND = 10.0


class Client:
    """One event loop's connection to a supervisor.

    Links outlive the connection to a standalone supervisor: they need it no more. It is connected
    again when a link is asked for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str | None) -> None:
        self._loop = weakref.ref(loop)
        self._address = address
        self._supervisor: _core.SupervisorClient | None = None
        # While a standalone supervisor has yet to greet.
        self._greeting: asyncio.Future[None] | None = None
        self._most_workers = 0
        self._most_streams = 0
        self.links: dict[int, Link] = {}
        self._requests: dict[int, asyncio.Future[Link | None]] = {}
        self._changed: asyncio.Future[None] | None = None
        # How many streams a worker is being chosen for.
        self._placing = 0
        self._preloaded: set[str] = set()
        self._checking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.grants = Grants(self)
        # The link that streams are leaving right now, while they are told to.
        self.left: Link | None = None

    def close(self) -> None:
        """Let go of the supervisor and of all links."""
        for task in self._tasks:
            task.cancel()
        for link in list(self.links.values()):
            self._drop(link)
        self._disconnect()

    def _connect(self) -> _core.SupervisorClient:
        """Return the connection to the supervisor, made anew if need be."""
        if self._supervisor is not None:
            return self._supervisor
        if self._address is None:
            supervisor = supervisors.embedded()
        else:
            supervisor = supervisors.connect(self._address)
        loop = asyncio.get_running_loop()
        self._supervisor = supervisor
        if self._address is not None:
            self._greeting = loop.create_future()
            for link in self.links.values():
                link.leaving = True  # a worker of the supervisor before this one
        loop.add_reader(supervisor.fileno(), self._on_supervisor)
        if self._preloaded:
            supervisor.preload(list(self._preloaded), import_paths())
        return supervisor

    async def _greet(self) -> None:
        """Wait until a standalone supervisor has said who it is and what it allows.

        Raises:
            PoolError: When it is none that this program can use.

        """
        if self._greeting is None:
            return
        try:
            async with asyncio.timeout(_HELLO_BOUND):
                await asyncio.shield(self._greeting)
        except TimeoutError:
            self._disconnect()
            raise PoolError(
                f"the supervisor at `{self._address}` did not answer within {_HELLO_BOUND} s"
            ) from None

    def _disconnect(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        loop = self._loop()
        if supervisor is not None and loop is not None and not loop.is_closed():
            loop.remove_reader(supervisor.fileno())

    async def open(self, function: Reference, config: StreamConfig, name: str) -> _core.Opened:
        """Open a stream on the worker that has the fewest.

        Raises:
            PoolError: When there is no worker, and none could be made.

        """
        loop = asyncio.get_running_loop()
        while True:
            link = await self._link_for(function, config)
            if self._most_streams:
                self._check_quota()
            if (opened := self._open_on(link, loop, function, config, name)) is not None:
                return opened

    async def open_lane(
        self, function: Reference, config: StreamConfig, name: str, most: int
    ) -> _core.Opened:
        """Open a lane for many keys, at most `most` of whose events are on their way.

        Raises:
            PoolError: When there is no worker, and none could be made.

        """
        loop = asyncio.get_running_loop()
        limits = (most, *function.limits[1:])
        while True:
            link = await self._link_for(function, config)
            if self._most_streams:
                self._check_quota()
            self._set_levels(link)
            opened = link.end.open(loop, function.number, limits, name, lane=True)
            if opened is not None:
                self._opened_on(link, function, config, loop)
                return opened
            self._let_go(link)

    async def take_over(
        self, stream: _core.Recovery, function: Reference, config: StreamConfig, avoid: Link | None
    ) -> None:
        """Have a worker take a stream over, another one than `avoid` if there may be one.

        Raises:
            PoolError: When there is no worker, and none could be made.

        """
        while stream.wanted:
            link = await self._link_for(function, config, avoid)
            self._set_levels(link)
            if link.end.reopen(stream, function.number):
                lifecycle_log.stream(INFO, stream.name, "goes on in worker process %d", link.pid)
                self._watch(link, config)
                if avoid is not None and avoid.outgrown:
                    link.refuge = asyncio.get_running_loop().time()
                return
            link.leaving = True  # it takes no more streams: the supervisor will say why

    async def has_better(self, left: Link, function: Reference, config: StreamConfig) -> bool:
        """Find out whether there is a better worker for a stream than its own, and make it ready.

        Raises:
            PoolError: When one is missing, and could not be made.

        """
        link = await self._link_for(function, config, left)
        return link is not left and (left.leaving or not link.end.slow)

    async def _link_for(
        self, function: Reference, config: StreamConfig, avoid: Link | None = None
    ) -> Link:
        """Choose a worker, and have it know the function."""
        if self._supervisor is None:
            try:
                self._connect()
            except supervisors.NoSupervisor:
                if not self.links:
                    raise
        if config.preload:
            self._preload(config.preload)
        definition = function.definition
        if function.preload:
            self._preload(function.preload)
        self._placing += 1
        try:
            link = await self._place(config.workers or placement.usable_cores(), avoid)
        finally:
            self._placing -= 1
        link.define(function.number, definition)
        return link

    def open_now(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Reference,
        config: StreamConfig,
        name: str,
    ) -> _core.Opened | None:
        """Do the same where nothing has to be waited for: a worker is there and has the function.

        After a pause every line counts, because it comes from memory again. None: use `open`.
        """
        if self._supervisor is None or self._most_streams:
            return None
        workers = config.workers or placement.usable_cores()
        if self._most_workers:
            workers = min(workers, self._most_workers)
        link = placement.free(self.links.values(), workers)
        if link is None or function.number not in link.functions:
            return None
        return self._open_on(link, loop, function, config, name)

    def _open_on(
        self,
        link: Link,
        loop: asyncio.AbstractEventLoop,
        function: Reference,
        config: StreamConfig,
        name: str,
        kept: tuple[bytes, int, float | None, str] | None = None,
    ) -> _core.Opened | None:
        self._set_levels(link)
        keep: Any = kept
        if config.recover != "none":
            keep = recovery.keep(self, function, config)
        opened = link.end.open(loop, function.number, function.limits, name, keep)
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
        """Give up a link that takes no more streams, once it has none."""
        link.leaving = True  # if it has some, the supervisor will say why
        if link.end.dead:
            self.give_up(link)
        elif link.number in self.links and not link.end.streams:
            self._drop(link)
            if self._supervisor is not None and link.number >= 0:
                self._supervisor.release(link.number)

    def _check_up_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._checking = True
        loop.call_later(_CHECK_UP, _check_up, weakref.ref(self))

    def check_up(self) -> None:
        """Look at the links on which streams are open, now and while there are any."""
        self._checking = False
        busy = [link for link in self.links.values() if link.end.streams]
        for link in busy:
            link.end.check_up()
        loop = self._loop()
        if busy and loop is not None and not loop.is_closed():
            self._check_up_later(loop)

    def _watch(self, link: Link, config: StreamConfig) -> None:
        """Have the supervisor look at a worker whose streams have limits."""
        stall = _least_of(link.stall, config.stall_timeout, config.event_timeout)
        memory = _least_of(link.memory, config.max_worker_memory)
        unwatched = link.end.take_unwatched()
        if unwatched or (stall, memory) != (link.stall, link.memory):
            link.stall, link.memory = stall, memory
            if self._supervisor is not None and link.number >= 0:  # else nobody can look
                self._supervisor.watch(link.number, stall, memory)

    def _set_levels(self, link: Link) -> None:
        levels = _levels.packed()
        if levels is not link.levels:
            link.end.set_levels(levels)
            link.levels = levels

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the user's tasks."""
        task = asyncio.get_running_loop().create_task(work, name="velo recovery")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def send_away(self, number: int, streams: list[str] | None = None) -> int:
        """Have other workers take over the streams of a link, or those of these names.

        Only streams with `recover="replay"` can go; the others stay. They go on where they are
        until another worker is ready; the one that they have left cancels them.

        Args:
            number: The link. A worker that is to be left by all of its streams takes no more.
            streams: Their names; None for all.

        Returns:
            How many streams are to go. Those for which there is no better worker stay after all.

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

    def _preload(self, modules: tuple[str, ...]) -> None:
        new = [module for module in modules if module not in self._preloaded]
        if new:
            self._preloaded.update(new)
            if self._supervisor is not None:
                self._supervisor.preload(new, import_paths())

    def _check_quota(self) -> None:
        """Refuse a stream over what the supervisor allows one process.

        The quota is a promise between programs that trust each other: the supervisor tells it, and
        every client keeps to it.
        """
        from velo._process import clients

        quota = self._most_streams
        if clients.streams_at(self._address) >= quota:
            raise PoolError(
                f"this process has {quota} open streams, which is the quota of one client of the "
                f"supervisor at `{self._address}` (`--client-streams {quota}`)"
            )

    async def _place(self, workers: int, avoid: Link | None = None) -> Link:
        """Choose a worker: an idle one, else a new one, else the one with the fewest streams."""
        links = self.links.values()  # as they are at each time
        while True:
            if self._most_workers:
                workers = min(workers, self._most_workers)
            if (free := placement.free(links, workers, avoid)) is not None:
                return free
            had_links = bool(links)
            if len(placement.usable(links, workers, avoid)) + len(self._requests) < workers:
                try:
                    link = await self._acquire(workers)
                except supervisors.NoSupervisor:
                    if (least := placement.least(placement.usable(links, workers))) is None:
                        raise
                    return least
                if link is not None:
                    return link
            if self._requests:
                below = placement.below_share(links, workers, avoid, self._placing)
                if below is not None:
                    return below  # it need not wait for one more: others will go there
            usable = placement.usable(links, workers, avoid) or placement.usable(links, workers)
            if self._requests or (not usable and links):
                await self._change()  # a worker is on its way, or one that leaves makes room
            elif (least := placement.least(usable)) is not None:
                return least
            elif not links and not had_links:
                raise PoolError("all workers are taken, and no more may be started")

    async def _change(self) -> None:
        """Wait until the supervisor has said something."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    async def _acquire(self, workers: int) -> Link | None:
        """Ask for a link to one more worker. None: there are as many as there may be.

        A standalone supervisor that ends meanwhile is connected to again.
        """
        while True:
            supervisor = self._connect()
            await self._greet()
            if supervisor is not self._supervisor:
                continue
            number = supervisor.acquire(workers)
            request = self._requests[number] = asyncio.get_running_loop().create_future()
            link: Link | None = await asyncio.shield(request)
            if link is not None or supervisor is self._supervisor:
                return link

    def _on_supervisor(self) -> None:
        if self._supervisor is None:
            return
        try:
            for what, *rest in self._supervisor.poll():
                getattr(self, f"_on_{what}")(*rest)
        except PoolError as error:
            self._fail(error)
        self._tell_change()

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    def _on_hello(self, velo: str, runtime: str, most_workers: int, most_streams: int) -> None:
        if self._address is not None:
            supervisors.check(self._address, velo, runtime)
            self._most_workers, self._most_streams = most_workers, most_streams
        self._answer_greeting(None)

    def _fail(self, error: PoolError) -> None:
        """Take leave of a supervisor that this program cannot use."""
        self._disconnect()
        self._answer_greeting(error)
        self._on_lost(str(error))

    def _answer_greeting(self, error: PoolError | None) -> None:
        greeting, self._greeting = self._greeting, None
        if greeting is None or greeting.done():
            return
        if error is None:
            greeting.set_result(None)
        else:
            greeting.set_exception(error)
            greeting.exception()  # whoever asked may have been cancelled

    def _on_link(
        self, request: int, number: int, worker: int, pid: int, end: _core.ClientLink
    ) -> None:
        link = self.links[number] = Link(number, worker, pid, end)
        lifecycle_log.workers.debug("worker process %d is ready for streams", pid)
        oom.remember()
        loop = self._loop()
        if loop is not None:
            attach(link, loop, self)
        self._answer(request, link)

    def _on_refused(self, request: int, why: str | None) -> None:
        self._answer(request, None if why is None else PoolError(f"no worker process: {why}"))

    def _on_key_granted(self, request: int, link: int, grant: int, fresh: bool) -> None:
        self.grants.granted(request, link, grant, fresh)

    def _on_key_refused(self, request: int, why: str | None) -> None:
        self.grants.refused(request, why)

    def _on_key_gone(self, request: int) -> None:
        self.grants.gone(request)

    def _on_not_preloaded(self, module: str, why: str) -> None:
        if module in self._preloaded:
            warnings.warn(
                f"workers go on without module `{module}` preloaded: {why}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _on_retired(self, number: int) -> None:
        if (link := self.links.get(number)) is not None:
            self._drop(link)
            lifecycle_log.workers.debug("worker process %d is let go", link.pid)
            # Only an idle link is taken back. This fails nothing, unless its count was wrong.
            link.end.fail(
                lambda stream, number, in_flight: RingCorrupted(
                    f"stream `{stream}` has lost its link: the worker (pid {link.pid}) wrote over "
                    "the count of its streams"
                )
            )

    def give_up(self, link: Link) -> None:
        """Give a link back that makes no sense; its streams have failed. Its worker is replaced."""
        if self.links.get(link.number) is link:
            self._drop(link)
            if self._supervisor is not None and link.number >= 0:
                self._supervisor.release_broken(link.number)
            self._tell_change()

    def _on_leaving(self, number: int) -> None:
        """Leave a worker that has outgrown its limit: its streams move, or may end there.

        Those that were moved just now have outgrown the next worker too. They stay.
        """
        if (link := self.links.get(number)) is not None:
            link.leaving = link.outgrown = True
            if asyncio.get_running_loop().time() - link.refuge >= _SETTLED:
                self._send_away(link)

    def on_slow_step(
        self, link: Link, stream: str, seconds: float, held_up: bool, habit: bool
    ) -> None:
        if habit:  # its neighbours are better off elsewhere
            self._send_away(link, slow=False)
        # On a busy machine anybody may have one slow step: it must not hide a habit.
        now = asyncio.get_running_loop().time()
        again = habit and stream != link.named and link.end.streams > 1
        if again or (held_up and now - link.warned >= slow_steps.WARN_EVERY):
            link.warned, link.named = now, stream
            slow_steps.warn_of_neighbour(stream, seconds)

    def _on_died(
        self,
        number: int,
        who: tuple[int, int],
        how: tuple[int | None, int | None],
        ran: str,
        why: tuple[bool, str] | None,
        stack: str,
    ) -> None:
        link = self.links.get(number)
        if link is None:
            return
        self._drop(link)
        lifecycle_log.workers.debug("worker process %d is gone", link.pid)
        worker_death.tell(link, how, ran, why, stack)

    def _on_lost(self, why: str = "the supervisor of this process has ended") -> None:
        self._disconnect()
        if self._address is not None:
            return self._on_left()
        # The next stream of this event loop begins anew.
        for link in list(self.links.values()):
            self._on_died(link.number, (link.worker, link.pid), (None, None), "nothing", None, "")
        for request in list(self._requests):
            self._answer(request, PoolError(why))
        self.grants.lost(PoolError(why))

    def _on_left(self) -> None:
        """Go on without a standalone supervisor: its workers serve the links that there are."""
        why = f"the supervisor at `{self._address}` has hung up"
        lifecycle_log.workers.debug(why)
        self._answer_greeting(PoolError(why))
        links = list(self.links.values())
        self.links.clear()
        for link in links:
            if link.number >= 0:  # the next supervisor's numbers are its own
                link.number = -next(_numbers)
                self._watch_process(link)
            self.links[link.number] = link
        for request in list(self._requests):
            self._answer(request, None)
        self.grants.lost(None)

    def _watch_process(self, link: Link) -> None:
        """Learn of the death of a worker whose supervisor is gone."""
        loop, process = self._loop(), link.end.process_fileno()
        if loop is not None and process is not None:
            gone = functools.partial(self._on_orphan_died, link)
            loop.add_reader(process, gone)

    def _on_orphan_died(self, link: Link) -> None:
        # Its own part of the story is in the link; of other links and of the system nobody tells.
        ran = "here" if link.end.culprit() is not None else "nothing"
        self._on_died(link.number, (link.worker, link.pid), (None, None), ran, None, "")
        self._tell_change()

    def _answer(self, request: int, answer: Link | PoolError | None) -> None:
        future = self._requests.pop(request, None)
        if future is None or future.done():
            return
        if isinstance(answer, PoolError):
            future.set_exception(answer)
            future.exception()  # whoever asked may have been cancelled
        else:
            future.set_result(answer)

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
