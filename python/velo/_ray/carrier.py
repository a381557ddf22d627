"""Carries the frames of lanes to one node and back, by calls of its actor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._ray.failures import located, node_died, reason_of, said, unpacked
from velo._ray.library import load
from velo.errors import StreamClosed

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec

__all__ = ["Carrier"]

# The most bytes of one call: Ray keeps larger arguments in its object store.
_CALL = 64 * 1024
# So many bytes go at once, also while an earlier call is on its way: hundreds of small events.
# Fewer wait for the answer to that call.
_FULL = 16 * 1024
# Without room for frames, it tells the node so often that it lives; seconds.
_HOLD = 10.0
# The most calls with frames on their way.
_MOST_CALLS = 4


class Carrier:
    """The lanes that one event loop has on one node.

    Attributes:
        node: The id of the node.
        place: The node, for messages.
        workers: How many lanes it takes.

    """

    def __init__(
        self,
        actor: Any,
        node: str,
        place: str,
        about: tuple[int, int],
        on_lost: Callable[[Carrier], None],
    ) -> None:
        self.node = node
        self.place = place
        self._pid, self.workers = about
        self.lost = False
        self._actor = actor
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._caller = os.urandom(12)
        self._lanes: dict[int, tuple[_core.RemoteLane, str]] = {}
        self._lane = self._call = self._calls = self._opening = 0
        self._pumping = False
        self._may_ask = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = False

    async def open(self, spec: FunctionSpec, name: str, most: int) -> _core.RemoteLane:
        """Open a lane.

        Raises:
            NodeDied: When the node has gone.
            Exception: When no worker can run the function there.

        """
        config = spec.config.replace(
            mode="process", supervisor="embedded", on_poison="fail", migrate=None
        )
        reference = spec.reference
        definition = reference.definition  # first, as `preload` is known with it
        if not self._lanes and not self._opening:
            # The node may have forgotten a caller without lanes, and how many calls it has made.
            self._caller, self._call = os.urandom(12), 0
        self._lane = number = self._lane + 1
        asked = (
            *(self._caller, number, definition, reference.has_state),
            *(list(reference.preload), name, most),
        )
        self._opening += 1
        try:
            call = self._actor.open_lane.remote(_core.dumps(asked), config)
            packed = await self._answer(call, name)
        except asyncio.CancelledError:
            self._actor.drop_lane.remote(self._caller, number)  # no task reads it
            raise
        finally:
            self._opening -= 1
        if packed is not None:
            raise unpacked(packed, self.place)
        if self.lost:
            raise node_died(name, self.place, self._pid)
        lane = _core.RemoteLane(self._nudge, self.place, config.max_bytes // 2)
        self._lanes[number] = (lane, name)
        if not self._listening:
            self._listening = True
            self._start(self._listen())
        return lane

    async def _answer(self, call: Any, name: str) -> Any:
        ray = load()
        try:
            return await call
        except ray.exceptions.RayActorError as error:
            self._lose()
            raise node_died(name, self.place, self._pid, said(error)) from None

    # Frames to the node.

    def _nudge(self) -> None:
        """There is something to carry, or room for what comes."""
        self._may_ask.set()
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        while self._calls < _MOST_CALLS and not self.lost:
            waiting = sum(lane.waiting for lane, _ in self._lanes.values())
            if not waiting or (self._calls and waiting < _FULL):
                return
            segments, room = [], _CALL
            for number, (lane, _) in self._lanes.items():
                if lane.waiting and room:
                    data = lane.take(room)
                    room -= len(data)
                    segments.append((number, data))
            blob = _core.dumps((self._caller, self._call, segments))
            self._call += 1
            self._calls += 1
            self._start(self._put(self._actor.put.remote(blob)))

    async def _put(self, call: Any) -> None:
        try:
            await call
        except load().exceptions.RayError as error:
            self._lose(said(error))
        finally:
            self._calls -= 1
        self._pump()

    # Frames from the node.

    async def _listen(self) -> None:
        """Ask for frames as long as there are lanes."""
        try:
            while self._lanes and not self.lost:
                while any(lane.is_full for lane, _ in self._lanes.values()):
                    self._may_ask.clear()
                    try:
                        await asyncio.wait_for(self._may_ask.wait(), _HOLD)
                    except TimeoutError:
                        await self._actor.hold.remote(self._caller)
                frames = await self._actor.get.remote(self._caller)
                if frames is None:  # this process stood still for so long that it passed for dead
                    self._lose("its node heard nothing of this process for too long")
                else:
                    self._deliver(*_core.loads(frames))
        except load().exceptions.RayError as error:
            self._lose(said(error))
        except asyncio.CancelledError:
            self._leave()
            raise
        except Exception as error:  # no task reads the lanes from here on
            self._lose(reason_of(error))
        finally:
            self._listening = False

    def _deliver(self, segments: list[tuple[int, bytes]], ends: list[tuple[int, Any]]) -> None:
        for number, data in segments:
            if number in self._lanes:
                self._lanes[number][0].push(data)
        for number, (packed, death) in ends:
            if number not in self._lanes:
                continue
            lane, name = self._lanes.pop(number)
            if packed is None:
                error = located(StreamClosed(f"the lane `{name}` has ended"), self.place)
            else:
                error = unpacked(packed, self.place)
            lane.close(error, death)

    # The end.

    def _lose(self, reason: str = "") -> None:
        """Give up: the node has gone, or its actor has."""
        if self.lost:
            return
        self.lost = True
        self._on_lost(self)
        lanes, self._lanes = self._lanes, {}
        for lane, name in lanes.values():
            # No function of it is to blame.
            lane.close(node_died(name, self.place, self._pid, reason), (False, 0, True))

    def _leave(self) -> None:
        self.lost = True
        self._on_lost(self)
        self._actor.leave.remote(self._caller)

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work, name=f"frames to {self.place}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
