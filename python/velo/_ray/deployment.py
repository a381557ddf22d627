"""`velo run` on several nodes: a member on each, and again elsewhere when its node goes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from velo._ray.cluster import NodeInfo, alive, connect, pinned
from velo._ray.failures import reason_of
from velo._ray.library import load
from velo._ray.member import Member, pause_after

__all__ = ["Deployment"]

# So often nodes are looked for, where there are too few; seconds.
_LOOK = 1.0
# A node on which a member could not start is not tried for this time, if there are others; seconds.
# It is longer than each pause before the member is placed again.
_AVOID = 60.0


@dataclass
class _Placed:
    """A member: where it is, and its exit code once it has ended."""

    number: int
    node: NodeInfo
    actor: Any
    code: int | None = None


@dataclass
class Deployment:
    """The members of one service.

    Args:
        command: The arguments of `velo` for each of them.
        folder: Where they run.
        count: How many there are; None: one for each node.
        restarts: How often one is started again, and placed again where it could not start; None:
            always.
        say: Is called with each line of output, and the member that it is of.
        runtime_env: For Ray: how nodes get the program.

    """

    command: list[str]
    folder: str
    count: int | None
    restarts: int | None
    say: Callable[[int, str, str], object]
    runtime_env: dict[str, Any] | None = None
    _placed: dict[int, _Placed] = field(default_factory=dict)
    # By node: when a member could not start there.
    _failed: dict[str, float] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, address: str | None) -> int:
        """Run all members until they have ended; return the exit code of the first that failed."""
        await asyncio.to_thread(connect, address)
        count = self.count or max(1, len(await asyncio.to_thread(alive)))
        codes = await asyncio.gather(*(self._keep(number) for number in range(1, count + 1)))
        return next((code for code in codes if code), 0)

    async def stop(self) -> None:
        """Have all members drain."""
        self._stopping.set()
        for member in self._placed.values():
            if member.code is None:
                member.actor.stop.remote()

    async def _keep(self, number: int) -> int:
        """Run one member, on another node when its own has gone."""
        failures = 0
        while True:
            member = await self._place(number)
            if member is None:
                return 0
            has_started = False
            try:
                await member.actor.pid.remote()  # which answers at once
                has_started = True
                while True:
                    lines, member.code = await member.actor.news.remote()
                    for line in lines:
                        self.say(number, member.node.place, line)
                    if member.code is not None:
                        return member.code
            except load().exceptions.RayError as error:
                if self._stopping.is_set():
                    return 1
                reason = reason_of(error).splitlines()[0]
                what = "has gone" if has_started else "did not start"
                self.say(number, member.node.place, f"velo: {what} ({reason})")
            finally:
                self._placed.pop(number, None)
            failures = 0 if has_started else failures + 1
            if failures:
                self._failed[member.node.id] = time.monotonic()
                if self.restarts is not None and failures > self.restarts:
                    return 1
                await self._pause(pause_after(failures))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _place(self, number: int) -> _Placed | None:
        """Start a member on the node with the fewest; waits for one, and says so."""
        waits = False
        while not self._stopping.is_set():
            nodes = await asyncio.to_thread(alive)
            if nodes and not self._stopping.is_set():
                used = [member.node.id for member in self._placed.values()]
                tried = time.monotonic() - _AVOID
                node = min(
                    nodes,
                    key=lambda node: (
                        self._failed.get(node.id, -math.inf) > tried,
                        used.count(node.id),
                    ),
                )
                actor = self._start(node)
                member = self._placed[number] = _Placed(number, node, actor)
                return member
            if not waits:
                waits = True
                self.say(number, "no node", "velo: waits for a node of the cluster that is alive")
            await self._pause(_LOOK)
        return None

    def _start(self, node: NodeInfo) -> Any:
        about = (self.command, self.folder, self.restarts)
        return pinned(Member, node, *about, runtime_env=self.runtime_env)
