"""The lanes that one caller has on this node: frames that come go to workers, and others back."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._ray.failures import packed

if TYPE_CHECKING:
    from velo._function.exceptions import Packed

__all__ = ["Relays"]

# The most bytes of one reply: Ray keeps larger ones in its object store.
_REPLY = 64 * 1024
# A caller with more bytes than this that found no room is not asked for more.
_MOST_BEHIND = 1 << 20
# So long a call for frames waits for some.
_HOLD = 5.0
# A lane with so many events in hand may say later what it has, so that it says more at a time.
_BUSY = 64
# A caller that has not called for so long is gone.
_GONE = 60.0

# The tasks of lanes.
_running: set[asyncio.Task[None]] = set()


class _Lane:
    """One lane, and its task."""

    def __init__(self, relay: _core.LaneRelay) -> None:
        self.relay = relay
        self.behind = 0
        self.failure: Exception | None = None
        # What its task waits on, while something is to be taken from it.
        self.taken: asyncio.Future[None] | None = None

    def push(self, data: bytes) -> None:
        """Put frames into the lane, or on their way behind those that wait."""
        try:
            self.behind = self.relay.push(data)
        except Exception as error:
            self.failure = error
            self.behind = 0
            self.relay.cancel()

    def go_on(self) -> None:
        """Put frames that wait into the lane, as far as there is room."""
        if self.behind:
            self.push(b"")

    @property
    def over(self) -> tuple[Packed | None, Any] | None:
        """The error that it has ended with, packed, and how its worker has died."""
        over = self.relay.over
        if over is None:
            return None
        error, death = over if self.failure is None else (self.failure, None)
        return None if error is None else packed(error), death

    def close(self) -> None:
        """Cancel what runs in it: its caller is gone."""
        self.relay.cancel()
        if self.taken is not None:
            _wake(self.taken)

    async def drain(self) -> None:
        """Throw away what comes until it is over: it has its place in the worker until then."""
        while True:
            self.relay.take(_REPLY)
            if self.relay.over is not None:
                return
            if (news := self.relay.wait(False)) is not None:
                await news
            await asyncio.sleep(0)


class Relays:
    """The lanes of one caller."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}
        # Those with something to take, in order.
        self._ready: dict[int, _Lane] = {}
        # Those that open, and that the caller waits for.
        self._opening: set[int] = set()
        self._early: dict[int, list[tuple[int, bytes]]] = {}
        self._next = 0
        self._room = asyncio.Event()
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._called = asyncio.get_running_loop().time()

    @contextlib.contextmanager
    def opening(self, number: int) -> Iterator[None]:
        """Know that a lane opens: a caller that waits for it is not gone."""
        self._opening.add(number)
        try:
            yield
        finally:
            self._opening.discard(number)
            self.hold()

    def add(self, number: int, opened: _core.Opened) -> None:
        """Relay to a lane that was opened just now, if its caller still waits for it."""
        lane = _Lane(_core.LaneRelay(opened))
        if number in self._opening:
            self._lanes[number] = lane
        else:
            lane.close()
        task = asyncio.get_running_loop().create_task(self._watch(number, lane))
        _running.add(task)
        task.add_done_callback(_running.discard)

    def drop(self, number: int) -> None:
        """Cancel a lane that its caller does not wait for any more, open or not."""
        self._opening.discard(number)
        if (lane := self._lanes.pop(number, None)) is not None:
            self._ready.pop(number, None)
            lane.close()
            self._room.set()

    async def put(self, number: int, segments: list[tuple[int, bytes]]) -> None:
        """Take frames for lanes. Returns when there is room for more.

        Args:
            number: Which of the caller's calls it is: they may come out of order.
            segments: Lanes and frames for them.

        """
        self._called = asyncio.get_running_loop().time()
        self._early[number] = segments
        while (now := self._early.pop(self._next, None)) is not None:
            self._next += 1
            for of, data in now:
                if (lane := self._lanes.get(of)) is not None:
                    lane.push(data)
        while self._is_behind():
            self._room.clear()
            await self._room.wait()

    def _is_behind(self) -> bool:
        return sum(lane.behind for lane in self._lanes.values()) > _MOST_BEHIND

    async def get(self) -> bytes:
        """Wait for frames that come back, a while at most, and give them."""
        loop = asyncio.get_running_loop()
        self._called = loop.time()
        if not self._ready:
            waiting = loop.create_future()
            self._waiting.append(waiting)
            timer = loop.call_later(_HOLD, _wake, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
                self._waiting.remove(waiting)
        self._called = loop.time()
        return _core.dumps(self._taken())

    def _taken(self) -> tuple[list[tuple[int, bytes]], list[tuple[int, Any]]]:
        """Take frames of lanes, and the ends of those that are over."""
        segments, ends, room = [], [], _REPLY
        for number, lane in list(self._ready.items()):
            del self._ready[number]
            data = lane.relay.take(room)
            if data:
                segments.append((number, data))
            if len(data) == room:
                self._ready[number] = lane  # there may be more
                break
            room -= len(data)
            if (over := lane.over) is not None:
                ends.append((number, over))
                del self._lanes[number]
            if lane.taken is not None:
                _wake(lane.taken)
        return segments, ends

    async def _watch(self, number: int, lane: _Lane) -> None:
        """Note each time when a lane has something to take, or has room for what waits."""
        loop = asyncio.get_running_loop()
        while number in self._lanes:
            busy = lane.relay.pending >= _BUSY
            if (news := lane.relay.wait(busy)) is not None:
                await news
            if number not in self._lanes:
                break
            lane.go_on()
            self._room.set()
            lane.taken = loop.create_future()
            self._ready[number] = lane
            if self._waiting:
                _wake(self._waiting[0])
            await lane.taken
        await lane.drain()

    def hold(self) -> None:
        """Note that its caller lives."""
        self._called = asyncio.get_running_loop().time()

    @property
    def is_left(self) -> bool:
        """Whether its caller has not called for long."""
        silent = asyncio.get_running_loop().time() - self._called
        return not self._opening and silent > _GONE

    def close(self) -> None:
        """Cancel what runs: the caller is gone."""
        for lane in self._lanes.values():
            lane.close()
        self._opening.clear()
        self._lanes.clear()
        self._ready.clear()
        self._room.set()  # calls that wait return
        for waiting in self._waiting:
            _wake(waiting)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
