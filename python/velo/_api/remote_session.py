"""`open(key=...)` in ray mode: a stream here, whose function sends events to a session elsewhere.

The session runs in process mode on the node of its key, and `session_node.py` has an attachment to
it. Here is an inline stream, whose function takes events and yields what comes back. It asks for
its next event once the session has handled all that it took before, or while more are queued: so
that `feed`, `buffer` and closing mean the same as elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._api.session import Key, Sessions, busy, encode
from velo._api.stream import Stream
from velo._ray.failures import check_version, no_node, node_died, not_started, said, unpacked

if TYPE_CHECKING:
    from velo._function.spec import FunctionSpec
    from velo._ray.cluster import NodeInfo

__all__ = ["RemoteSessions"]

# The most events of one call.
_MANY = 256
# So often it tells the node that it lives; seconds.
_HOLD = 10.0
# An actor is to answer within so many seconds.
_START = 60.0


class RemoteSessions(Sessions):
    """The sessions of one stream function in ray mode."""

    def __init__(self, spec: FunctionSpec) -> None:
        super().__init__(spec)
        if spec.config.max_concurrent is not None:
            raise ValueError(
                '`open(key=...)` does not take `max_concurrent` with `mode="ray"`: no process '
                "knows all sessions"
            )

    async def attach(self, key: Key) -> _RemoteAttachment:  # type: ignore[override]
        """Attach to the session under `key`, or begin it."""
        spec, loop = self._spec, asyncio.get_running_loop()
        digest = hashlib.sha256(self._identity + encode(key)).digest()
        name = spec.next_name()
        bridge = _Bridge(*await _actor_of(digest), name)
        config = self.config.replace(
            mode="process",
            supervisor="embedded",
            on_poison="fail",
            migrate=None,
            # The stream here drops and refuses events; what it has taken is sent.
            full="wait",
            timeout=spec.config.timeout,
        )
        reference = spec.reference
        definition = reference.definition
        asked = (
            *(bridge.id, definition, reference.has_state, list(reference.preload)),
            *(self._identity, spec.name, key),
        )
        answer = await bridge.attach(_core.dumps(asked), config)
        if answer == "taken":
            raise busy(spec, key)
        if answer is not None:
            raise unpacked(answer, bridge.node.place)
        limits = (self.config.buffer, self.config.full)
        opened = _core.open_inline(loop, bridge.run, False, limits, name, None)
        spec.stats.enter(opened)
        return _RemoteAttachment(opened, name, self.config, bridge)


class _RemoteAttachment(Stream[Any, Any]):
    """One use of a session on a node."""

    __slots__ = ("_bridge",)

    def __init__(self, opened: _core.Opened, name: str, config: Any, bridge: _Bridge) -> None:
        super().__init__(opened, name, config, asyncio.get_running_loop(), _nothing)
        self._bridge = bridge
        bridge.stream = self

    def end(self) -> _core.Operation[None]:
        """End the input for good: see `Stream.end`."""
        self._bridge.ends = True
        return super().end()


class _Bridge:
    """Takes events to an attachment on a node, and yields its results.

    Attributes:
        id: The name of the attachment.
        node: Where the session is.
        stream: The stream whose function it is.
        ends: The input is to end with that of the stream, and not only the attachment.

    """

    def __init__(self, node: NodeInfo, actor: Any, pid: int, name: str) -> None:
        self.id = os.urandom(12)
        self.ends = False
        self.stream: _RemoteAttachment
        self.node = node
        self._actor = actor
        self._pid = pid
        self._name = name
        self._taken = 0

    async def attach(self, asked: bytes, config: Any) -> Any:
        """Attach; a cancelled wait leaves the line."""
        try:
            return await self._answer(self._actor.attach.remote(asked, config))
        except asyncio.CancelledError:
            self._actor.leave.remote(self.id, waits=False)
            raise

    async def run(self, events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Be the function of the stream."""
        loop = asyncio.get_running_loop()
        sent = handled = 0
        asking: asyncio.Future[Any] | None = None
        # Beside the results: the session may have no room for more events until those are taken.
        telling: asyncio.Task[None] | None = None
        receiving = loop.create_task(self._receive(handled))
        holding = loop.create_task(self._hold())
        has_ended = left = False
        try:
            while True:
                is_ready = asking is None and telling is None and not has_ended
                if is_ready and (handled >= sent or self._queued()):
                    asking = asyncio.ensure_future(anext(events))
                waits = {one for one in (receiving, asking, telling) if one is not None}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if telling is not None and telling.done():
                    telling.result()
                    telling = None
                if asking is not None and asking.done():
                    batch = await self._batch(asking, events)
                    asking = None
                    sent += len(batch)
                    has_ended = not batch
                    if has_ended and not self.ends:
                        left = True
                        await self._leave()
                        return
                    telling = loop.create_task(self._send(batch) if batch else self._end())
                if receiving.done():
                    results, handled, over, error = receiving.result()
                    for result in results:
                        yield result
                    if over:
                        left = True
                        if error is not None:
                            raise unpacked(error, self.node.place)
                        return
                    receiving = loop.create_task(self._receive(handled))
        finally:
            for task in (receiving, holding, asking, telling):
                if task is not None:
                    task.cancel()
            if not left:
                self._actor.leave.remote(self.id, waits=False)

    def _queued(self) -> bool:
        return self.stream._progress()[0] > self._taken

    async def _batch(self, first: asyncio.Future[Any], events: AsyncIterator[Any]) -> list[Any]:
        """Take the event that has come, and those that are queued behind it; nothing at the end."""
        batch = []
        with contextlib.suppress(StopAsyncIteration):
            batch.append(first.result())
            self._taken += 1
            while len(batch) < _MANY and self._queued():
                batch.append(await anext(events))
                self._taken += 1
        return batch

    async def _send(self, batch: list[Any]) -> None:
        await self._answer(self._actor.send.remote(_core.dumps((self.id, batch))))

    async def _end(self) -> None:
        await self._answer(self._actor.end.remote(self.id))

    async def _receive(self, handled: int) -> tuple[list[Any], int, bool, Any]:
        blob = await self._answer(self._actor.receive.remote(_core.dumps((self.id, handled))))
        found: tuple[list[Any], int, bool, Any] = _core.loads(blob)
        return found

    async def _hold(self) -> None:
        """Tell the node that this program lives, also while nobody takes results."""
        while True:
            await asyncio.sleep(_HOLD)
            self._actor.hold.remote(self.id)

    async def _leave(self) -> None:
        packed = await self._answer(self._actor.leave.remote(self.id, waits=True))
        if packed is not None:
            raise unpacked(packed, self.node.place)

    async def _answer(self, call: Any) -> Any:
        from velo._ray.library import load

        try:
            return await call
        except load().exceptions.RayActorError as error:
            raise node_died(self._name, self.node.place, self._pid, said(error)) from None


async def _actor_of(digest: bytes) -> tuple[NodeInfo, Any, int]:
    """Return the node of a digest, its actor, after starting that, and the process of that."""
    from velo._ray.buckets import bucket_of, node_of
    from velo._ray.cluster import alive, connect
    from velo._ray.library import load

    await asyncio.to_thread(connect)
    bucket, until = bucket_of(digest), time.monotonic() + _START
    while True:
        node = await asyncio.to_thread(node_of, bucket, alive)
        if node is None:
            raise no_node()
        actor = await asyncio.to_thread(_named, node)
        try:
            async with asyncio.timeout(_START):
                version = await actor.hello.remote()
                check_version(version, node.place)  # first: another one may have no other method
                pid = await actor.pid.remote()
        except (load().exceptions.RayError, TimeoutError) as error:
            if time.monotonic() >= until:
                raise not_started(node.place, "sessions", error, _START) from None
            await asyncio.sleep(0.1)  # until Ray knows that the node has gone, or the name is free
            continue
        return node, actor, pid


def _named(node: NodeInfo) -> Any:
    """Return the actor that all programs share, and start it if there is none."""
    from velo._api.session_node import SessionNode
    from velo._ray.cluster import pinned

    named = {"name": f"sessions-{node.id}", "namespace": "velo", "get_if_exists": True}
    return pinned(SessionNode, node, lifetime="detached", **named)


def _nothing() -> None:
    pass
