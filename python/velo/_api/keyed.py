"""One stream per key."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._api.source import of_keyed
from velo._function.key_text import shown
from velo.errors import StreamClosed

if TYPE_CHECKING:
    from velo._api.opener import StreamOpener

# How many events are sent before the event loop gets a turn.
_TURN = 64


async def keyed(
    opener: StreamOpener[Any, Any], events: Iterable[Any] | AsyncIterable[Any], key: Any
) -> AsyncGenerator[tuple[Any, Any], None]:
    """See `StreamFn.keyed`."""
    streams = _Streams(opener, key if callable(key) else _field(key))
    source = of_keyed(events, _TURN, streams.group.nudge)
    left = _TURN
    try:
        while True:
            sent, held_up = streams.send(source.events, left)
            left -= sent
            if held_up:
                while not await streams.offer(*held_up):
                    await streams.group
                    for item in streams.results():
                        yield item
                left -= 1
            elif left and source.exhausted:
                break
            if left <= 0:
                left = _TURN
                await asyncio.sleep(0)
            elif held_up:
                continue
            else:
                await streams.group
            for item in streams.results():
                yield item
        await streams.end_all()
        while streams.count:
            await streams.group
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


class _Streams:
    """The live streams by key, the least recently used first.

    `group` moves events and results; this class opens and ends streams.
    """

    def __init__(self, opener: StreamOpener[Any, Any], key_of: Callable[[Any], Hashable]) -> None:
        self.group = _core.StreamGroup()
        self._opener = opener
        self._key_of = key_of
        self._limited = opener.spec.limiter is not None
        self._members: OrderedDict[Hashable, _core.GroupMember] = OrderedDict()
        self._finished: set[Hashable] = set()

    @property
    def count(self) -> int:
        """The number of live streams."""
        return len(self._members)

    def send(self, events: Iterator[Any], most: int) -> tuple[int, tuple[Hashable, Any] | None]:
        """Send at most `most` events.

        Returns:
            How many were sent, and the key and the event that hold up the others, if one does.

        """
        return self.group.distribute(events, self._key_of, self._members, most, self._limited)

    async def offer(self, key: Hashable, event: Any) -> bool:
        """Send an event to its key's stream. False: there is no room yet; wait and try again."""
        member = self._members.get(key)
        if member is None:
            if key in self._finished:
                return True  # the function has returned: further events of this key are dropped
            member = await self._open(key)
            if member is None:
                return False
        if member.ending:
            return False  # a new stream opens once the last results of the old one are out
        try:
            sent = member.offer(event)
        except StreamClosed:
            member.ending = member.stream.closed
            return False
        if not sent:
            self.group.watch(member)
        return sent

    async def _open(self, key: Hashable) -> _core.GroupMember | None:
        release = self._opener.spec.try_acquire()
        if release is None:
            if self._members:
                await self._force_one_out()
                return None
            release = await self._opener.spec.acquire()  # other streams hold all permits
        name = f"{self._opener.spec.name}[{shown(key)}]"
        stream = await self._opener.open_with(release, name)
        member = self._members[key] = _core.GroupMember(key, stream)
        self.group.watch(member)
        return member

    async def _force_one_out(self) -> None:
        if not any(member.ending for member in self._members.values()):
            await self._end(next(iter(self._members.values())))

    async def _end(self, member: _core.GroupMember) -> None:
        if not member.ending:
            member.ending = True
            await member.stream.end()

    async def end_all(self) -> None:
        """End the input of every stream."""
        for member in list(self._members.values()):
            await self._end(member)

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Yield the results that are there now, in order within each key."""
        return itertools.chain.from_iterable(self._batches())

    def _batches(self) -> Iterator[list[tuple[Any, Any]]]:
        more = True
        while more:
            results, over, failed, more = self.group.results()
            for member in over:
                self._forget(member)
            yield results
            results.clear()  # the next wait must not keep them alive
            if failed is not None:
                key, error = failed
                error.add_note(f"in the stream of key {key!r}")
                raise error

    def _forget(self, member: _core.GroupMember) -> None:
        if self._members.get(member.key) is member:
            del self._members[member.key]
            if not (member.ending or member.stream._input_ended):
                self._finished.add(member.key)
        member.stream._give_back()

    async def close(self) -> None:
        """Cancel the streams that are left: the iteration has ended early."""
        left = [member.stream for member in self._members.values()]
        self._members.clear()
        for stream in left:
            stream._cancel()
        try:
            await asyncio.gather(*(stream._stop() for stream in left))
        finally:
            for stream in left:
                stream._give_back()
