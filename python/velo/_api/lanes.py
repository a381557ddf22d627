"""Many keys of one function: the calls of their iteration to Python."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from velo import _core
from velo._api import idle
from velo._api.patience import waiting_for
from velo._api.source import Source, live, plain
from velo._function.key_text import shown
from velo._time_limit import stood_still, time_limit

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec
    from velo._ray.lanes import Lanes
    from velo.errors import WorkerDied

__all__ = ["MOST_FINISHED", "Host", "check", "guarding", "keyed", "tracked"]

# The least seconds that cancelled functions have for their `finally` blocks.
_LEAST_GRACE = 1.0
# So many more for each key that is open: keys end one after the other.
_GRACE_OF_KEY = 1e-4
# The most events that a thread reads ahead from a plain source, and a task from an async source.
_AHEAD = 256
_AHEAD_ASYNC = 64
# The most keys whose functions have returned that are remembered.
MOST_FINISHED = 65_536
# The events that a lane of records has room for; the driver bounds pending ones for each partition.
_RING_EVENTS = 10_000
_NO_LIMIT = 1 << 40

Restore = Callable[[list[Hashable]], "list[bytes | Literal[False] | None]"]


def keyed(
    spec: FunctionSpec,
    events: Iterable[Any] | AsyncIterable[Any],
    key: Callable[[Any], Hashable] | Hashable,
    max_pending: int,
    on_error: Any,
    finished_keys: str,
) -> tuple[_core.Keys, AsyncGenerator[None, None]]:
    """Prepare to run a function for each key: what results come from; see `StreamFn.keyed`."""
    check(max_pending, on_error, finished_keys)
    host = Host(spec, max_pending)
    source: Any = events
    if not isinstance(events, AsyncIterable):
        source = plain(events, _AHEAD, _running_loop())
    waits = isinstance(source, AsyncIterable | _core.ReadAhead)
    if waits:
        source = _LateSource(source, host)
    config = spec.config
    settings = (
        *(config.buffer, max_pending, config.max_bytes, config.max_concurrent),
        *(config.timeout is not None, finished_keys, MOST_FINISHED, on_error),
    )
    recovery = None
    if config.mode != "inline" and config.recover != "none":
        recovery = (config.journal_limit, spec.has_state, config.max_restarts)
    host.keys = keys = _core.Keys(host, source, waits, key, host.most_lanes, settings, recovery)
    keys.enter(spec.stats)
    guard = guarding(host)
    host.guard = weakref.ref(guard)
    return keys, guard


def tracked(
    spec: FunctionSpec,
    feed: Any,
    key: Any,
    finished_keys: str,
    *,
    by_record_key: bool,
    restore: Restore | None = None,
    unloads: bool = False,
) -> tuple[_core.KeyedResults[Any], _core.Keys]:
    """Run a function for each key of the records that `feed` gives, and track those.

    `feed` is an iterator that stops while it has nothing, with an attribute `exhausted`. The first
    result is what iterating gives, or None where something else is to be had from `Keys.take`.

    With `restore`, states are saved when `Keys.save_dirty` asks for it, and `restore` gives those
    of keys that open; with `unloads`, keys that make room for others or are idle are unloaded. With
    `recover="replay"`, keys whose worker dies go on from their last snapshots.
    """
    host = Host(spec, _RING_EVENTS)
    host.restore = restore
    config = spec.config
    settings = (
        *(config.buffer, _NO_LIMIT, config.max_bytes, config.max_concurrent),
        *(config.timeout is not None, finished_keys, MOST_FINISHED, "raise"),
    )
    host.keys = keys = _core.Keys(host, feed, True, key, host.most_lanes, settings)
    recovers = config.mode != "inline" and config.recover == "replay"
    max_restarts = config.max_restarts if recovers else None
    keys.track(by_record_key, restore is not None, unloads, max_restarts)
    keys.enter(spec.stats)
    guard = guarding(host)
    host.guard = weakref.ref(guard)
    return _core.KeyedResults(keys, guard), keys


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None  # `keyed` was called before its loop runs


def check(max_pending: int, on_error: Any, finished_keys: str) -> None:
    if not isinstance(max_pending, int) or max_pending < 1:
        raise ValueError(f"`max_pending` must be an integer of at least 1, not {max_pending!r}")
    if on_error not in ("raise", "drop") and not callable(on_error):
        raise ValueError(f"`on_error` must be `raise`, `drop` or a callable, not {on_error!r}")
    if inspect.iscoroutinefunction(on_error):
        raise ValueError("`on_error` must be a plain function: what is `async` is not awaited here")
    if finished_keys not in ("ignore", "restart", "raise"):
        raise ValueError(
            f"`finished_keys` must be `ignore`, `restart` or `raise`, not {finished_keys!r}"
        )


async def guarding(host: Host) -> AsyncGenerator[None, None]:
    """Close all when it is closed: by hand, with the dropped iteration, or with the loop."""
    try:
        yield
    finally:
        await host.close(cancel=True)


class Host:
    """Opens lanes, gives places, and closes."""

    def __init__(self, spec: FunctionSpec, max_pending: int) -> None:
        self.keys: _core.Keys
        self.source: Source | None = None
        self.restore: Restore | None = None
        self._mode = spec.config.mode
        # In ray mode, nodes are known when the first lane opens.
        one = self._mode != "process"
        self.most_lanes = 1 if one else spec.config.workers or _core.usable_cores()
        self._remote: Lanes | None = None
        self._spec = spec
        self._max_pending = max_pending
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: asyncio.Task[None] | None = None
        self._begun = False
        self._idle: _Idle | None = None
        self.guard: weakref.ref[AsyncGenerator[None, None]]

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin: from here on, lanes or a source have to be closed."""
        if self._begun:
            return
        self._begun = True
        if (guard := self.guard()) is not None:
            with contextlib.suppress(StopIteration):
                guard.__anext__().__await__().send(None)  # now the event loop knows it
        if (timeout := self._spec.config.timeout) is not None:
            self._idle = _Idle(self.keys, loop)
            idle.watch(loop, self._idle, timeout)

    # What the keys ask for.

    def open_lane(self) -> None:
        """Open one more lane."""
        loop = asyncio.get_running_loop()
        self.begin(loop)
        if self._mode == "inline":
            function = (self._spec.runs, self._spec.has_state)
            deadline = self._spec.config.event_timeout
            self.keys.add_inline(loop, function, self._spec.next_name(), deadline)
        elif self._mode == "process":
            self._start(self._open_lane(loop))
        else:
            self._start(self._open_remote_lane())

    async def _open_lane(self, loop: asyncio.AbstractEventLoop) -> None:
        from velo._process.clients import client_of

        spec = self._spec
        try:
            client = client_of(loop, spec.config.supervisor)
            with waiting_for("a worker", spec.name):  # its keys wait, and it may never come
                opened = await client.open_lane(
                    spec.reference, spec.config, spec.next_name(), self._max_pending
                )
        except Exception as error:
            self.keys.no_lane(error)
        else:
            self.keys.add_lane(opened)

    async def _open_remote_lane(self) -> None:
        try:
            if self._remote is None:
                from velo._ray.lanes import Lanes

                self._remote = Lanes(self._spec, self._max_pending)
                self._start(self._remote.watch(self.keys))
            await self._remote.open(self.keys)
        except Exception as error:
            self.keys.no_lane(error)

    def replace_lane(self, number: int) -> None:
        """Open a lane in place of one that is to leave its worker, on a better one."""
        self._start(self._replace_lane(asyncio.get_running_loop(), number))

    async def _replace_lane(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        from velo._process.clients import client_of

        spec = self._spec
        client = client_of(loop, spec.config.supervisor)
        links = client.links.values()
        left = next((link for link in links if self.keys.lane_is_on(number, link.end)), None)
        try:
            if left is None or not await client.has_better(left, spec.reference, spec.config):
                return self.keys.keep_lane(number)
            opened = await client.open_lane(
                spec.reference, spec.config, spec.next_name(), self._max_pending, left
            )
        except Exception:
            return self.keys.keep_lane(number)  # it goes on where it is, and may be asked again
        self.keys.replace_lane(number, opened)

    def died(
        self,
        error: WorkerDied,
        key: Hashable,
        in_flight: int,
        culprit: bool | None,
        ran: tuple[Hashable, int] | None,
    ) -> WorkerDied:
        """Return the error of one key of a lane whose worker has died.

        Args:
            error: How the worker died.
            key: The key.
            in_flight: How many events its function had not finished.
            culprit: Whether the function of this key ran, or another one; None if that is unknown.
            ran: The key whose function ran and the event that it had taken last, where it was one
                of this lane.

        """
        stream, event = error.culprit_stream, error.event
        if ran is not None:
            stream, event = self.name_of(ran[0]), ran[1] or None
        about = (error.pid, error.signal, error.exit_code, in_flight, culprit, stream, event)
        own = type(error)(self.name_of(key), *about, error.stack, error.why)
        vars(own).update(node=error.node)
        for note in getattr(error, "__notes__", ()):
            own.add_note(note)
        return own

    def poisoned(
        self, died: WorkerDied, key: Hashable, number: int, at_work: bool, packed: bytes | None
    ) -> WorkerDied | None:
        """Decide what becomes of a key that has ended too many workers at one place.

        Args:
            died: Its error.
            key: The key.
            number: The number of the event that its function had taken last; 0 before the first.
            at_work: Whether it was at work on that event, and not past it.
            packed: The event, encoded.

        Returns:
            The error that the key ends with. None: it goes on without the event.

        """
        from velo._process import recovery

        config = self._spec.config
        if not at_work:
            recovery.give_up(died, number, config)
            return died
        if config.on_poison == "skip":
            return None
        event, failure = None, None
        try:
            event = None if packed is None else _core.loads(packed)
        except Exception as error:
            failure = error
        if config.on_poison == "fail":
            if failure is not None:
                died.add_note(f"event {number} cannot be shown: {failure!r}")
            return recovery.poison_event(died, number, event, config)
        loop = asyncio.get_running_loop()
        recovery.hand_over(loop, config.on_poison, self.name_of(key), number, event, failure)
        return None

    def name_others(self, error: WorkerDied, some: list[Hashable], count: int) -> None:
        """Name other keys that have lost their worker: some of them, and how many there are."""
        if count:
            named = ", ".join(map(shown, some))
            more = "" if count == len(some) else f" and {count - len(some):,} more"
            error.add_note(f"the worker ran other keys, which are lost with it: {named}{more}")

    def name_of(self, key: Hashable) -> str:
        """Return the name of the stream of a key."""
        return f"{self._spec.name}[{shown(key)}]"

    def take_permit(self) -> bool:
        return self._spec.try_acquire() is not None

    def give_permit(self) -> None:
        if self._spec.limiter is not None:
            self._spec.limiter.release()

    def await_permit(self) -> None:
        """Wait for a permit: other streams have all of them."""
        self._start(self._await_permit())

    async def _await_permit(self) -> None:
        try:
            await self._spec.acquire()
        except Exception as error:
            self.keys.fail(error)
        else:
            self.keys.add_permit()

    def closes(self, failed: bool) -> asyncio.Future[None]:
        """Close all, to be waited for."""
        return asyncio.shield(self._close_soon(cancel=failed))

    # The end.

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._spec.name} keys")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, *, cancel: bool) -> None:
        if self.keys.of_parent:
            return  # a forked process, in which the event loop does not run
        await asyncio.shield(self._close_soon(cancel=cancel))

    def _close_soon(self, *, cancel: bool) -> asyncio.Task[None]:
        if self._closed is None:
            name = f"{self._spec.name} keys"
            loop = asyncio.get_running_loop()
            self._closed = loop.create_task(self._close(cancel), name=name)
        return self._closed

    async def _close(self, cancel: bool) -> None:
        keys = self.keys
        if self._idle is not None:
            self._idle.closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        grace = max(self._spec.config.close_timeout, _LEAST_GRACE) + _GRACE_OF_KEY * keys.unended
        if cancel:
            keys.cancel()
        else:
            keys.end_lanes()
        # After that: the keys would take the end of their source for the end of their events.
        if self.source is not None:
            await self.source.close()
        try:
            async with time_limit(grace):
                while not keys.discard():
                    await keys.wait()
                    await asyncio.sleep(0)  # the loop has to hear of a worker's death
        except TimeoutError:
            warnings.warn(
                f"keys of `{self._spec.name}` did not end within {grace:g} s of being cancelled; "
                "they are left behind",
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            keys.clear()


class _Idle:
    """Ends idle keys, in the form that the timer of idle streams takes."""

    def __init__(self, keys: _core.Keys, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = False
        self._keys = keys
        self._loop = loop

    def _idle_seconds(self) -> float:
        return self._keys.idle()

    def _expire(self, timeout: float) -> None:
        # All keys that have been idle for as long stood still with the oldest one.
        self._keys.expire(timeout + stood_still(self._keys.idle(), self._loop))
        idle.watch(self._loop, self, timeout)

    def _age(self, seconds: float) -> None:
        self._keys.age(seconds)


class _LateSource:
    """A source whose next event may take time. Its reader starts when it is first asked."""

    def __init__(self, events: AsyncIterable[Any] | _core.ReadAhead[Any], host: Host) -> None:
        self._events = events
        self._host = host
        self._next: Callable[[], Any] | None = None

    def _reader(self) -> Source:
        if self._host.source is None:
            self._host.begin(asyncio.get_running_loop())
            self._host.source = live(self._events, _AHEAD_ASYNC, self._host.keys.nudge)
        return self._host.source

    @property
    def exhausted(self) -> bool:
        return self._reader().exhausted

    def __iter__(self) -> _LateSource:
        return self

    def __next__(self) -> Any:
        if self._next is None:
            self._next = self._reader().events.__next__
        return self._next()
