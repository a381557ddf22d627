"""What runs on a node: an actor, whose process has a supervisor and workers of its own."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from velo import _core
from velo._config import StreamConfig
from velo._function.reference import Reference
from velo._ray.failures import packed
from velo._ray.relays import Relays

__all__ = ["Node"]

# Callers that are gone are looked for as often.
_LOOK = 20.0


class Node:
    """The lanes of all callers on one node. Its methods are called by Ray, in one event loop."""

    def __init__(self) -> None:
        self._callers: dict[bytes, Relays] = {}
        self._references: dict[Any, Reference] = {}
        self._looking: asyncio.Task[None] | None = None

    async def hello(self) -> tuple[str, int, int]:
        """Return the version of velo, the process id, and how many cores it may use."""
        return _core.__version__, os.getpid(), _core.usable_cores()

    async def open_lane(self, asked: bytes, config: StreamConfig) -> Any:
        """Open a lane for a caller.

        Args:
            asked: The caller, the number of the lane, the function, its name, and how many events
                may be in flight.
            config: The settings of the function, in process mode.

        Returns:
            None, or the packed exception.

        """
        from velo._process.clients import client_of

        caller, number, definition, has_state, preload, name, most = _core.loads(asked)
        loop = asyncio.get_running_loop()
        if self._looking is None:
            self._looking = loop.create_task(self._look())
        if (relays := self._callers.get(caller)) is None:
            relays = self._callers[caller] = Relays()
        with relays.opening(number):
            try:
                reference = self._reference(definition, has_state, preload, config)
                client = client_of(loop, "embedded")
                opened = await client.open_lane(reference, config, name, most)
            except Exception as error:
                return packed(error)
            relays.add(number, opened)
        return None

    def _reference(
        self, definition: bytes, has_state: bool, preload: Any, config: StreamConfig
    ) -> Reference:
        known = (definition, config.stall_timeout, config.event_timeout, config.max_worker_memory)
        if (reference := self._references.get(known)) is None:
            reference = Reference.received(definition, has_state, tuple(preload), config)
            self._references[known] = reference
        return reference

    async def put(self, blob: bytes) -> None:
        """Take frames for lanes; see `Relays.put`."""
        caller, number, segments = _core.loads(blob)
        if (relays := self._callers.get(caller)) is not None:
            await relays.put(number, segments)

    async def get(self, caller: bytes) -> bytes | None:
        """Give frames that come back; see `Relays.get`. None: nothing of this caller is here."""
        relays = self._callers.get(caller)
        return None if relays is None else await relays.get()

    async def hold(self, caller: bytes) -> None:
        """Note that a caller lives, which has no room for frames that come back."""
        if (relays := self._callers.get(caller)) is not None:
            relays.hold()

    async def drop_lane(self, caller: bytes, number: int) -> None:
        """Cancel a lane that a caller does not wait for any more; see `Relays.drop`."""
        if (relays := self._callers.get(caller)) is not None:
            relays.drop(number)

    async def leave(self, caller: bytes) -> None:
        """Cancel what a caller has here."""
        if (relays := self._callers.pop(caller, None)) is not None:
            relays.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            for caller, relays in list(self._callers.items()):
                if relays.is_left:
                    await self.leave(caller)
