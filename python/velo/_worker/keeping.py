"""What a worker does for the checkpoint of its supervisor: it loads states, and gives snapshots.

The state of a session is whole whenever its function asks for an event. A tick takes a snapshot of
each state that may have changed: at once where the function waits for an event, else when it asks
for the next one. It takes a few milliseconds at a time; streams have their turn in between.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from velo._diagnostics.failpoints import reached
from velo._function.key_text import shown
from velo._worker.keeper_line import KeeperLine
from velo._worker.session import WorkerSession
from velo.errors import CheckpointError

__all__ = ["Keeping"]

# For so many seconds a tick goes on before other tasks have their turn.
_AT_A_TIME = 0.002
# After a tick that took some time, so many times as much passes until the next one.
_TIMES_COST = 9

_log = logging.getLogger("velo")

# The name, the state and its version.
_Change = tuple[str, bytes, bytes | None, int]


class Keeping:
    """The states of all sessions of a worker that its supervisor stores.

    Args:
        shared: The socket that leads to the keeper.
        on_lost: Called when the keeper is gone: nothing is stored any more.

    """

    def __init__(self, shared: int, on_lost: Callable[[], object]) -> None:
        self._shared = shared
        self._on_lost = on_lost
        self._connecting: asyncio.Task[KeeperLine] | None = None
        self._line: KeeperLine | None = None
        self._names: set[tuple[str, bytes]] = set()
        # Sessions whose states may have changed since their snapshots.
        self._dirty: dict[WorkerSession, None] = {}
        self._ticking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cost = self._last = 0.0
        self._stopped = False

    async def load(self, session: WorkerSession) -> None:
        """Load the state of a session that is about to begin."""
        kept, settings = session.kept, {}
        assert kept is not None
        found: Any
        claimed = False
        try:
            kept.refuse()
            if kept.name in self._names:
                raise CheckpointError(
                    f"the key {shown(kept.key)} of `{kept.name[0]}` has a session in this worker, "
                    "of another version of the function: wait until that has ended"
                )
            self._names.add(kept.name)
            claimed = True
            line = await self._connected()
            settings = line.settings
            found = await line.ask("load", *kept.name)
            if isinstance(found, str):
                raise CheckpointError(found)
        except (CheckpointError, OSError) as error:
            found = error
            if isinstance(error, OSError):
                found = CheckpointError(f"the supervisor's checkpoint cannot be reached: {error}")
            if claimed:
                self._names.discard(kept.name)
        kept.on_loaded(found, settings)

    async def _connected(self) -> KeeperLine:
        if self._line is not None and not self._line.lost:
            return self._line
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> KeeperLine:
        try:
            self._line = await KeeperLine.connect(self._shared, self._on_lost)
        finally:
            self._connecting = None  # after a failure, the next session tries again
        return self._line

    def watch(self, session: WorkerSession) -> None:
        """Take snapshots of a session, whose function is about to begin."""
        if session.kept is not None and session.kept.loaded:
            session.core.when_asking(functools.partial(self._soil, session))

    def hurry(self) -> None:
        """Have a tick come soon: a session was detached."""
        if self._dirty:
            self._tick_after(0.0)

    def unload(self, session: WorkerSession) -> None:
        """Have a detached session leave the memory, without an end that its function could see."""
        kept = session.kept
        assert kept is not None
        assert session.task is not None
        if kept.loaded and not session.core.waiting:
            # It is at work by itself, as at a tick of its events.
            self._dirty[session] = None
            loop = asyncio.get_running_loop()
            session.core.when_asking(functools.partial(loop.call_soon, session.expire))
            return
        if session in self._dirty:
            del self._dirty[session]
            if (change := self._snapshot(session)) is not None:
                self._put([change])
        kept.unloaded = session.ending = True
        # One that goes on after it was cancelled sees its end.
        session.core.when_asking(session.core.end_input)
        session.task.cancel()

    def on_ended(self, session: WorkerSession, failed: bool) -> asyncio.Future[Any] | None:
        """Note that the function of a session has ended.

        Returns:
            Completed when the next attachment may begin a new session; None: at once.

        """
        kept, line = session.kept, self._line
        assert kept is not None
        self._dirty.pop(session, None)
        if not kept.loaded or line is None:
            return None
        self._names.discard(kept.name)
        returned = not (failed or kept.unloaded or self._stopped)
        change = (None, kept.version) if returned and kept.known else ()
        return line.ask("end", *kept.name, *change)

    async def stop(self) -> None:
        """Take the last snapshots, and wait until they are stored: all functions are cancelled."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._ticking is not None:
            await self._ticking
        await self._tick()

    # Ticks.

    def _soil(self, session: WorkerSession) -> None:
        self._dirty[session] = None
        if self._timer is None and self._line is not None:
            self._tick_after(self._line.settings["every"])

    def _tick_after(self, pause: float) -> None:
        loop = asyncio.get_running_loop()
        due = max(loop.time() + pause, self._last + _TIMES_COST * self._cost)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        if self._ticking is None and not self._stopped:
            self._timer = loop.call_at(due, self._begin_tick)

    def _begin_tick(self) -> None:
        self._timer = None
        self._ticking = asyncio.get_running_loop().create_task(self._tick_and_go_on())

    async def _tick_and_go_on(self) -> None:
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        try:
            await self._tick()
        finally:
            self._last = loop.time()
            self._cost = self._last - began
            self._ticking = None
            if self._dirty and self._line is not None and not self._line.lost:
                self._tick_after(self._line.settings["every"])

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        sessions, answers = list(self._dirty), []
        while sessions:
            until = loop.time() + _AT_A_TIME
            changes: list[_Change] = []
            while sessions and loop.time() < until:
                session = sessions.pop()
                if session not in self._dirty:
                    continue
                if not session.core.waiting:
                    session.core.when_asking(functools.partial(self._at_ask, session))
                    continue
                del self._dirty[session]
                session.core.when_asking(functools.partial(self._soil, session))
                if (change := self._snapshot(session)) is not None:
                    changes.append(change)
            if changes:
                # Before a session can end, so that what comes later is stored later.
                answers.append(self._put(changes))
            await asyncio.sleep(0)
        for answer in answers:
            try:
                await answer  # an error is the keeper's: it tries again
            except CheckpointError:
                return  # it is gone
        if answers:
            reached("session", 2)

    def _at_ask(self, session: WorkerSession) -> None:
        """Take a snapshot that was due earlier. The function may go on: it stays dirty."""
        if (change := self._snapshot(session)) is not None:
            self._put([change])

    def _snapshot(self, session: WorkerSession) -> _Change | None:
        kept = session.kept
        assert kept is not None
        try:
            packed = kept.snapshot()
        except CheckpointError as error:
            _log.error("%s", error)
            # It fails where its user sees that: at its next event.
            session.core.when_asking(functools.partial(_raise, error))
            return None
        return None if packed is None else (*kept.name, packed, kept.version)

    def _put(self, changes: list[_Change]) -> asyncio.Future[Any]:
        assert self._line is not None
        reached("session", 1)
        return self._line.ask("put", changes)


def _raise(error: CheckpointError) -> None:
    raise error
