"""Sources of events. A thread reads plain ones that may wait, so that the event loop goes on."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import itertools
import queue
import sys
import threading
import time
import types
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from velo import _core
from velo.errors import SlowStepWarning

__all__ = ["Batches", "Source", "live", "plain"]

T = TypeVar("T")

_SAMPLES: tuple[Iterable[Any], ...] = (
    *([], (), {}, {}.keys(), {}.values(), {}.items(), set(), range(0), range(1 << 70)),
    *("", "\u20ac", b"", bytearray(), memoryview(b""), collections.deque(), reversed([])),
    *(itertools.repeat(0), itertools.count()),
)
# Iterators over objects in memory: they have the next item at once. All others may wait.
_IN_MEMORY = frozenset(type(iter(sample)) for sample in _SAMPLES)

# A source that is read in the event loop is warned of when one item takes longer; seconds.
_SLOW = 0.05


def plain(events: Iterable[T], limit: int, loop: asyncio.AbstractEventLoop | None) -> Iterator[T]:
    """Give an iterator over a plain source that does not hold up the event loop.

    One that may wait is read in a thread, and is a `ReadAhead`. One that is bound to the loop's
    thread is read there, with a warning when it holds up the loop.

    Args:
        events: The source.
        limit: How many items are read ahead at most where it is used as an iterator.
        loop: The event loop that must go on; None while it does not run yet.

    Raises:
        TypeError: When it is no iterable, or a mapping or a data frame, whose iteration gives
            something else than events.

    """
    _core.check_source(events)
    iterator = iter(events)
    if type(iterator) in _IN_MEMORY or isinstance(iterator, _core.ReadAhead):
        return iterator
    if getattr(loop, "_is_turned", False):
        return iterator
    if _is_bound_to_its_thread(iterator):
        return _watched(iterator)
    return _read_ahead(iterator, limit)


def _read_ahead(iterator: Iterator[T], limit: int) -> _core.ReadAhead[T]:
    """Read an iterator in a thread, which starts when the first item is asked for."""
    demand: queue.SimpleQueue[None] = queue.SimpleQueue()
    ahead: _core.ReadAhead[T] = _core.ReadAhead(demand, limit)
    reading = functools.partial(contextvars.copy_context().run, _read, ahead, iterator, demand)
    # A daemon: a source that waits for ever does not keep the program.
    thread = threading.Thread(target=reading, name="velo source", daemon=True)
    ahead.start_by(thread.start)
    return ahead


# What `ReadAhead.push` and `finish` have the thread do: a sum of these.
_GO_ON, _WAKE, _LEFT = 1, 2, 4


def _read(
    ahead: _core.ReadAhead[T], iterator: Iterator[T], demand: queue.SimpleQueue[None]
) -> None:
    """Read items as they are wanted, in the thread of a source."""
    push = ahead.push
    while True:
        demand.get()
        if ahead.closed:
            return
        try:
            for item in iterator:
                todo = push(item)
                if todo == _GO_ON:
                    continue
                if todo & _WAKE and not _call(ahead.wake):
                    return
                if todo & _LEFT and (left := ahead.left) is not None:
                    left(item)
                if not todo & _GO_ON:
                    break
            else:
                if ahead.finish() & _WAKE:
                    _call(ahead.wake)
                return
        except BaseException as error:
            if ahead.finish(error) & _WAKE:
                _call(ahead.wake)
            return
        item = None  # type: ignore[assignment]  # an item is not kept while nothing is wanted


def _call(wake: Callable[[], object] | None) -> bool:
    """Tell the event loop; false when it is closed."""
    if wake is not None:
        try:
            wake()
        except RuntimeError:
            return False
    return True


class Batches(AsyncIterable[Sequence[T]]):
    """An async source of `keyed` that gives many events at a time, in lists.

    Args:
        lists: Gives the lists.

    """

    def __init__(self, lists: AsyncIterable[Sequence[T]]) -> None:
        self._lists = lists

    def __aiter__(self) -> AsyncIterator[Sequence[T]]:
        return aiter(self._lists)


class Source(Protocol):
    """A source of `keyed`."""

    @property
    def events(self) -> Iterator[Any]:
        """Stops while no event is there, and goes on once there is one."""

    @property
    def exhausted(self) -> bool:
        """Whether it has stopped for good. Raises the exception of the source."""

    async def close(self) -> None:
        """Read no more."""


def live(
    events: AsyncIterable[Any] | _core.ReadAhead[Any], limit: int, nudge: Callable[[], object]
) -> Source:
    """Make a source whose next event may take time, in its event loop.

    Args:
        events: The source.
        limit: How many events of an async source are read ahead at most.
        nudge: Called in the loop when there is an event again.

    """
    if isinstance(events, AsyncIterable):
        return _Async(events, limit, nudge)
    return _Ahead(events, nudge)


class _Ahead:
    """A plain iterator that a thread reads."""

    def __init__(self, events: _core.ReadAhead[Any], nudge: Callable[[], object]) -> None:
        self.events = events
        loop = asyncio.get_running_loop()
        events.wake_by(functools.partial(loop.call_soon_threadsafe, nudge))

    @property
    def exhausted(self) -> bool:
        return self.events.exhausted

    async def close(self) -> None:
        self.events.close()


class _Async:
    """An async iterable. A task reads ahead, so that results arrive while it waits for events."""

    def __init__(self, events: AsyncIterable[Any], limit: int, nudge: Callable[[], object]) -> None:
        self._limit = limit
        self._nudge = nudge
        self._queue: collections.deque[Any] = collections.deque()
        self._room = asyncio.Event()
        self._full = False
        reading = self._read(events)
        # None once it was closed: the traceback of its end would keep the source alive, and open.
        self._task: asyncio.Task[None] | None
        self._task = asyncio.get_running_loop().create_task(reading, name="keyed source")

    async def _read(self, events: AsyncIterable[Any]) -> None:
        add = self._queue.extend if isinstance(events, Batches) else self._queue.append
        try:
            async for event in events:
                add(event)
                self._nudge()
                while len(self._queue) >= self._limit:
                    self._room.clear()
                    self._full = True
                    await self._room.wait()
        finally:
            self._nudge()

    @property
    def exhausted(self) -> bool:
        if self._task is None:
            return True
        if self._task.done() and not self._queue:
            self._task.result()  # raises the exception of the source
            return True
        return False

    @property
    def events(self) -> Iterator[Any]:
        return self  # an attribute would be a reference cycle

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._queue:
            raise StopIteration
        event = self._queue.popleft()
        if self._full and len(self._queue) < self._limit:
            self._full = False
            self._room.set()
        return event

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


def _is_bound_to_its_thread(iterator: Iterator[Any]) -> bool:
    """Tell whether it is, or goes through, a cursor of a database that refuses other threads."""
    sqlite = sys.modules.get("sqlite3")
    if sqlite is None:
        return False
    bound = (sqlite.Cursor, sqlite.Connection)
    if isinstance(iterator, bound):
        return True
    if isinstance(iterator, types.GeneratorType) and iterator.gi_frame is not None:
        return any(isinstance(value, bound) for value in iterator.gi_frame.f_locals.values())
    return False


def _watched(iterator: Iterator[T]) -> Iterator[T]:
    """Give the items of an iterator that has to stay in the event loop's thread."""
    warned = False
    while True:
        begun = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        took = time.perf_counter() - begun
        if took > _SLOW and not warned:
            warned = True
            warnings.warn(
                f"a source of type `{type(iterator).__name__}` held up the event loop for "
                f"{1e3 * took:.0f} ms: it has to be read in the loop's own thread; fetch its items "
                "in a thread of yours, or make them a list first",
                SlowStepWarning,
                stacklevel=2,
            )
        yield item
