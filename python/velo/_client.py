"""The client of process mode: one per event loop, its links to workers, and where streams go."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import functools
import math
import os
import sys
import warnings
import weakref
from pathlib import Path

from velo import _core, _logs
from velo._config import StreamConfig
from velo._reference import Reference, import_paths
from velo.errors import PoolError, RingCorrupted, StallWarning, WorkerDied

__all__ = ["Client", "client_of"]

# Each worker is one of several processes that share the cores: it must not start a pool of its own.
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

# How many seconds the interpreter's exit may wait for workers to run `finally` blocks.
_EXIT_BOUND = 2.0

_levels = _logs.Levels()

# Seconds; see `Link::nap` in velo-py/src/client/link.rs.
_NAP = 0.0005

# Seconds between two looks at what a worker that writes over its link could make this side miss.
_CHECK_UP = 0.5

_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = weakref.WeakKeyDictionary()


def close_client(loop: asyncio.AbstractEventLoop) -> None:
    """Give back the links of an event loop that is about to be closed."""
    client = _clients.pop(loop, None)
    if client is not None:
        client.close()


def client_of(loop: asyncio.AbstractEventLoop) -> Client:
    """Return the client of an event loop; the first one starts the supervisor."""
    client = _clients.get(loop)
    if client is None:
        for other in [other for other in _clients if other.is_closed()]:
            del _clients[other]
        client = _clients[loop] = Client(loop)
    return client


@dataclasses.dataclass(eq=False)
class _Link:
    """One worker, as this client reaches it."""

    number: int
    worker: int
    pid: int
    end: _core.ClientLink
    functions: set[int] = dataclasses.field(default_factory=set)
    levels: bytes = b""
    leaving: bool = False
    shortest: float = math.inf


class Client:
    """One event loop's connection to the supervisor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._supervisor = _core.SupervisorClient(
            _zygote_command(),
            [(name, "1") for name in _ONE_THREAD if name not in os.environ],
            idle_timeout=float(os.environ.get("VELO_IDLE_TIMEOUT", "10")),
        )
        self._links: dict[int, _Link] = {}
        self._requests: dict[int, asyncio.Future[_Link | None]] = {}
        self._changed: asyncio.Future[None] | None = None
        self._preloaded: set[str] = set()
        self._lost = False
        self._checking = False
        loop.add_reader(self._supervisor.fileno(), self._on_supervisor)

    def close(self) -> None:
        """Let go of the supervisor and of all links."""
        for link in list(self._links.values()):
            self._drop(link)
        loop = self._loop()
        if loop is not None:
            loop.remove_reader(self._supervisor.fileno())
        del self._supervisor

    async def open(self, function: Reference, config: StreamConfig, name: str) -> _core.Opened:
        """Open a stream on the worker that has the fewest.

        Raises:
            PoolError: When there is no worker, and none could be made.

        """
        loop = asyncio.get_running_loop()
        if config.preload:
            self._preload(config.preload)
        definition = function.definition
        while True:
            link = await self._place(config.workers or usable_cores())
            if function.number not in link.functions:
                link.end.define(function.number, definition)
                link.functions.add(function.number)
            if (opened := self._open_on(link, loop, function, config, name)) is not None:
                return opened

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
        link = self._free(config.workers or usable_cores())
        if link is None or function.number not in link.functions:
            return None
        return self._open_on(link, loop, function, config, name)

    def _open_on(
        self,
        link: _Link,
        loop: asyncio.AbstractEventLoop,
        function: Reference,
        config: StreamConfig,
        name: str,
    ) -> _core.Opened | None:
        levels = _levels.packed()
        if levels is not link.levels:
            link.end.set_levels(levels)
            link.levels = levels
        max_bytes = 1 << (config.max_bytes - 1).bit_length()  # rings are powers of two
        limits = (config.buffer, max_bytes, config.full)
        budgets = (config.stall_timeout, config.event_timeout)
        opened = link.end.open(loop, function.number, limits, budgets, name)
        if opened is None:
            self._let_go(link)
        else:
            self._watch(link, budgets)
            if not self._checking:
                self._check_up_later(loop)
        return opened

    def _let_go(self, link: _Link) -> None:
        """Give up a link that takes no more streams, once it has none."""
        link.leaving = True  # if it has some, the supervisor will say why
        if link.end.dead:
            self.give_up(link.number)
        elif link.number in self._links and not link.end.streams:
            self._drop(link)
            self._supervisor.release(link.number)

    def _check_up_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._checking = True
        loop.call_later(_CHECK_UP, _check_up, weakref.ref(self))

    def check_up(self) -> None:
        """Look at the links on which streams are open, now and while there are any."""
        self._checking = False
        busy = [link for link in self._links.values() if link.end.streams]
        for link in busy:
            link.end.check_up()
        loop = self._loop()
        if busy and loop is not None and not loop.is_closed():
            self._check_up_later(loop)

    def _watch(self, link: _Link, budgets: tuple[float | None, ...]) -> None:
        """Have the supervisor look at a worker whose streams have limits."""
        shortest = min((limit for limit in budgets if limit is not None), default=math.inf)
        if shortest < link.shortest or link.end.take_unwatched():
            link.shortest = min(shortest, link.shortest)
            self._supervisor.watch(link.number, link.shortest)

    def _preload(self, modules: tuple[str, ...]) -> None:
        new = [module for module in modules if module not in self._preloaded]
        if new:
            self._preloaded.update(new)
            self._supervisor.preload(new, import_paths())

    async def _place(self, workers: int) -> _Link:
        """Choose a worker: an idle one, else a new one, else the one with the fewest streams."""
        while True:
            if (free := self._free(workers)) is not None:
                return free
            links = self._usable(workers)
            least = _least(links)
            had_links = bool(self._links)
            if len(links) + len(self._requests) < workers and (
                link := await self._acquire(workers)
            ):
                return link
            if self._requests or (least is None and self._links):
                await self._change()  # a worker is on its way, or one that leaves makes room
            elif (least := _least(self._usable(workers))) is not None:
                return least
            elif not self._links and not had_links:
                raise PoolError("all workers are taken, and no more may be started")

    def _free(self, workers: int) -> _Link | None:
        """Choose a worker for which no other has to be asked for; None if there is none."""
        links = self._usable(workers)
        least = _least(links)
        if least is not None and (len(links) >= workers or least.end.streams == 0):
            return least
        return None

    def _usable(self, workers: int) -> list[_Link]:
        links = [link for link in self._links.values() if not link.leaving]
        if len(links) > 1:
            links.sort(key=lambda link: link.worker)
        return links[:workers]

    async def _change(self) -> None:
        """Wait until the supervisor has said something."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    async def _acquire(self, workers: int) -> _Link | None:
        """Ask for a link to one more worker. None: there are as many as there may be."""
        if self._lost:
            raise PoolError("the supervisor of this process has ended")
        number = self._supervisor.acquire(workers)
        request = self._requests[number] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(request)

    def _on_supervisor(self) -> None:
        try:
            events = self._supervisor.poll()
        except PoolError as error:
            self._lose(str(error))
            return
        for what, *rest in events:
            getattr(self, f"_on_{what}")(*rest)
        self._tell_change()

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    def _on_link(
        self, request: int, number: int, worker: int, pid: int, end: _core.ClientLink
    ) -> None:
        link = self._links[number] = _Link(number, worker, pid, end)
        loop = self._loop()
        if loop is not None:
            loop.add_reader(end.fileno(), end.on_doorbell)
            end.set_nap(functools.partial(_nap, self._loop, weakref.ref(end)))
            end.set_wake_soon(functools.partial(_wake_soon, self._loop, weakref.ref(end)))
            end.set_broken(functools.partial(_broken, self._loop, weakref.ref(self), number))
            end.set_log(functools.partial(_log, self._loop, pid))
        self._answer(request, link)

    def _on_refused(self, request: int, why: str | None) -> None:
        self._answer(request, None if why is None else PoolError(f"no worker process: {why}"))

    def _on_not_preloaded(self, module: str, why: str) -> None:
        if module in self._preloaded:
            warnings.warn(
                f"workers go on without module `{module}` preloaded: {why}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _on_retired(self, number: int) -> None:
        if (link := self._links.get(number)) is not None:
            self._drop(link)
            # Only an idle link is taken back. This fails nothing, unless its count was wrong.
            link.end.fail(
                lambda stream, number, in_flight: RingCorrupted(
                    f"stream `{stream}` has lost its link: the worker (pid {link.pid}) wrote over "
                    "the count of its streams"
                )
            )

    def give_up(self, number: int) -> None:
        """Give a link back that makes no sense; its streams have failed. Its worker is replaced."""
        if (link := self._links.get(number)) is not None:
            self._drop(link)
            if not self._lost:
                self._supervisor.release_broken(number)
            self._tell_change()

    def _on_died(
        self,
        number: int,
        who: tuple[int, int],
        how: tuple[int | None, int | None],
        ran: str,
        why: str | None,
        stack: str,
    ) -> None:
        link = self._links.get(number)
        if link is None:
            return
        self._drop(link)
        culprit = link.end.culprit() if ran == "here" else None
        number_ran, name_ran, event = culprit or (None, None, None)

        def died(stream: str, number: int, in_flight: int) -> WorkerDied:
            error = WorkerDied(
                stream,
                link.pid,
                *how,
                in_flight,
                culprit=None if ran == "nothing" else number == number_ran,
                culprit_stream=name_ran,
                event=event or None,
                stack=stack,
                why=why,
            )
            if error.culprit and stack:
                error.add_note(f"in the worker:\n{stack}")
            return error

        if why is not None:
            what = f"stream `{name_ran}`, at event {event}, held up" if culprit else "nobody ran in"
            text = f"{what} worker process {link.pid}, which was killed: {why}\n{stack}"
            warnings.warn(
                text.rstrip(),
                StallWarning,
                stacklevel=2,
            )

        link.end.fail(died)

    def _on_lost(self) -> None:
        self._lose("the supervisor of this process has ended")

    def _lose(self, why: str) -> None:
        """Fail whatever is open here. The next stream of this event loop begins anew."""
        self._lost = True
        loop = self._loop()
        if loop is not None:
            loop.remove_reader(self._supervisor.fileno())
            if _clients.get(loop) is self:
                del _clients[loop]
        for link in list(self._links.values()):
            self._on_died(link.number, (link.worker, link.pid), (None, None), "nothing", None, "")
        for request in list(self._requests):
            self._answer(request, PoolError(why))

    def _answer(self, request: int, answer: _Link | PoolError | None) -> None:
        future = self._requests.pop(request, None)
        if future is None or future.done():
            return
        if isinstance(answer, PoolError):
            future.set_exception(answer)
            future.exception()  # whoever asked may have been cancelled
        else:
            future.set_result(answer)

    def _drop(self, link: _Link) -> None:
        if self._links.pop(link.number, None) is not None:
            loop = self._loop()
            if loop is not None and not loop.is_closed():
                loop.remove_reader(link.end.fileno())


def _least(links: list[_Link]) -> _Link | None:
    """Return the link with the fewest streams."""
    if len(links) == 1:
        return links[0]
    return min(links, key=lambda link: link.end.streams, default=None)


def _nap(
    loop_of: weakref.ref[asyncio.AbstractEventLoop], end_of: weakref.ref[_core.ClientLink]
) -> None:
    loop, end = loop_of(), end_of()
    if loop is not None and end is not None:
        loop.call_later(_NAP, end.nap_over)


def _check_up(client_of: weakref.ref[Client]) -> None:
    if (client := client_of()) is not None:
        client.check_up()


def _broken(
    loop_of: weakref.ref[asyncio.AbstractEventLoop], client_of: weakref.ref[Client], number: int
) -> None:
    loop, client = loop_of(), client_of()
    if loop is not None and client is not None and not loop.is_closed():
        loop.call_soon(client.give_up, number)


def _wake_soon(
    loop_of: weakref.ref[asyncio.AbstractEventLoop], end_of: weakref.ref[_core.ClientLink]
) -> None:
    loop, end = loop_of(), end_of()
    if loop is not None and end is not None:
        loop.call_soon(end.wake)


def _log(loop_of: weakref.ref[asyncio.AbstractEventLoop], pid: int, record: bytes) -> None:
    if (loop := loop_of()) is not None:
        loop.call_soon(_logs.deliver, pid, record)  # handlers are not run in the middle of a step


@functools.cache
def usable_cores() -> int:
    """How many cores this process may really use. Asked once: it takes the system a while."""
    return _core.usable_cores()


@functools.cache
def _zygote_command() -> list[str]:
    """How to start the process that workers are forked from."""
    if not sys.executable:
        raise PoolError("process mode needs `sys.executable`, the Python that runs workers")
    import subprocess

    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    home = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.append({home!r}); from velo._worker.zygote import main; main()"
    return [sys.executable, *flags, "-P", "-c", code]


def _after_fork_in_child() -> None:
    _core.after_fork_child()
    _clients.clear()


def _shutdown() -> None:
    """End the workers before the interpreter goes. Nobody is left to receive anything."""
    _clients.clear()
    _core.shutdown(_EXIT_BOUND)


os.register_at_fork(
    before=_core.before_fork,
    after_in_parent=_core.after_fork_parent,
    after_in_child=_after_fork_in_child,
)
atexit.register(_shutdown)
