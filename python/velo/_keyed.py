"""One stream per key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from velo import _core
from velo.errors import StreamClosed

if TYPE_CHECKING:
    from velo._function import StreamFn
    from velo._stream import Stream

_BURST = 256
# So many events of a plain source are sent before the event loop has a turn.
_TURN = 64


async def keyed(
    fn: StreamFn[Any, Any], events: Iterable[Any] | AsyncIterable[Any], key: Any
) -> AsyncGenerator[tuple[Any, Any], None]:
    """See `StreamFn.keyed`."""
    streams = _Streams(fn)
    key_of = key if callable(key) else _field(key)
    source: _Source = (
        _AsyncSource(events, streams.group)
        if isinstance(events, AsyncIterable)
        else _PlainSource(events)
    )
    sent = 0
    try:
        while not source.exhausted:
            for event in source.take():
                event_key = key_of(event)
                while not await streams.offer(event_key, event):
                    await streams.wait()
                    for item in streams.results():
                        yield item
                sent += 1
                if sent % _TURN == 0:
                    await asyncio.sleep(0)
                    for item in streams.results():
                        yield item
            if source.idle:
                await streams.wait()
                for item in streams.results():
                    yield item
        await streams.end_all()
        while streams.count:
            await streams.wait()
            for item in streams.results():
                yield item
    finally:
        await source.close()
        await streams.close()


def _field(name: Hashable) -> Callable[[Any], Hashable]:
    def get(event: Any) -> Hashable:
        try:
            found: Hashable = event[name]
        except TypeError:
            found = getattr(event, str(name))
        return found

    return get


class _Member:
    """One key's stream."""

    __slots__ = ("ending", "full", "key", "stream")

    def __init__(self, key: Hashable, stream: Stream[Any, Any]) -> None:
        self.key = key
        self.stream = stream
        self.ending = False  # its input has ended, its last results are on their way
        self.full = False  # somebody waits for room


class _Streams:
    """The live streams by key, the least recently used first.

    Each is watched by `group`, which tells a member once when it has something; the member is
    watched again after it was drained.
    """

    def __init__(self, fn: StreamFn[Any, Any]) -> None:
        self.group = _core.StreamGroup()
        self._fn = fn
        self._limit = fn.config.max_concurrent
        self._members: OrderedDict[Hashable, _Member] = OrderedDict()
        self._finished: set[Hashable] = set()
        self._ready: deque[_Member] = deque()

    @property
    def count(self) -> int:
        """How many streams are left."""
        return len(self._members)

    async def offer(self, key: Hashable, event: Any) -> bool:
        """Send an event to its key's stream. False: there is no room now, wait and try again."""
        member = self._members.get(key)
        if member is None:
            if key in self._finished:
                return True  # the function has returned: it wants no more events of this key
            member = await self._open(key)
            if member is None:
                return False
        elif self._limit is not None:
            self._members.move_to_end(key)
        if member.ending:
            return False  # a new stream opens once the old one's last results are out
        try:
            member.full = not member.stream._offer(event)
        except StreamClosed:
            member.ending = member.stream.closed
            return False
        if member.full:
            self._watch(member)
        return not member.full

    async def _open(self, key: Hashable) -> _Member | None:
        release = self._fn._try_take_place()
        if release is None:
            if self._members:
                await self._force_one_out()
                return None
            release = await self._fn._take_place()  # all places are somebody else's
        member = self._members[key] = _Member(key, await self._fn._open_in(release))
        self._watch(member)
        return member

    async def _force_one_out(self) -> None:
        if not any(member.ending for member in self._members.values()):
            await self._end(next(iter(self._members.values())))

    async def _end(self, member: _Member) -> None:
        if not member.ending:
            member.ending = True
            await member.stream.end()

    async def end_all(self) -> None:
        """End the input of every stream."""
        for member in list(self._members.values()):
            await self._end(member)

    async def wait(self) -> None:
        """Wait until a stream has something, or the source has."""
        if not self._ready:
            self._ready.extend(member for member in await self.group if member is not None)

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Give what is there now, in order within each key."""
        self._ready.extend(member for member in self.group.take() if member is not None)
        while self._ready:
            member = self._ready.popleft()
            try:
                results, over = member.stream._drain(_BURST)
            except BaseException as error:
                error.add_note(f"in the stream of key {member.key!r}")
                raise
            for result in results:
                yield member.key, result
            if over:
                self._forget(member)
            elif len(results) == _BURST:
                self._ready.append(member)
            else:
                self._watch(member)

    def _watch(self, member: _Member) -> None:
        self.group.watch(member.stream, member, member.full)

    def _forget(self, member: _Member) -> None:
        if self._members.get(member.key) is member:
            del self._members[member.key]
            if not (member.ending or member.stream._input_ended):
                self._finished.add(member.key)
        member.stream._give_back()

    async def close(self) -> None:
        """Cancel what is left: the iteration ended early."""
        left = [member.stream for member in self._members.values()]
        self._members.clear()
        for stream in left:
            stream._cancel()
        try:
            await asyncio.gather(*(stream._stop() for stream in left))
        finally:
            for stream in left:
                stream._give_back()


class _Source(Protocol):
    @property
    def exhausted(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    def take(self) -> Iterable[Any]: ...
    async def close(self) -> None: ...


class _PlainSource:
    """A plain iterable: always has the next event at once."""

    idle = False

    def __init__(self, events: Iterable[Any]) -> None:
        self._events = events
        self.exhausted = False

    def take(self) -> Iterable[Any]:
        self.exhausted = True
        return self._events

    async def close(self) -> None:
        pass


class _AsyncSource:
    """An async iterable, read ahead by a task so that results come while it is waited for."""

    def __init__(self, events: AsyncIterable[Any], group: _core.StreamGroup) -> None:
        self._group = group
        self._queue: deque[Any] = deque()
        self._room = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._read(events), name="keyed source")

    async def _read(self, events: AsyncIterable[Any]) -> None:
        try:
            async for event in events:
                self._queue.append(event)
                self._group.nudge()
                while len(self._queue) >= _TURN:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._group.nudge()

    @property
    def exhausted(self) -> bool:
        if self._task.done() and not self._queue:
            self._task.result()  # raises what the source raised
            return True
        return False

    @property
    def idle(self) -> bool:
        return not self._queue and not self._task.done()

    def take(self) -> Iterator[Any]:
        while self._queue:
            yield self._queue.popleft()
            self._room.set()

    async def close(self) -> None:
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait([self._task])
