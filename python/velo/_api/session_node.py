"""The sessions of a node, as programs elsewhere attach to them: what an actor of Ray runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from velo import _core
from velo._api.session import Attachment, Sessions
from velo._function.reference import Reference
from velo._ray.failures import packed
from velo.errors import PoolError, StreamBusy, StreamClosed

if TYPE_CHECKING:
    from velo._config import StreamConfig

__all__ = ["SessionNode"]

# The most results of one answer.
_MANY = 1024
# So long a call for results waits for some; seconds.
_HOLD = 5.0
# An attachment whose program has not called for so long is over: the program is gone.
_GONE = 30.0


class SessionNode:
    """The sessions of one node. Its methods are called by Ray, in one event loop."""

    def __init__(self) -> None:
        self._functions: dict[Any, _NodeSessions] = {}
        self._attached: dict[bytes, _Attached] = {}
        self._attaching: dict[bytes, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def hello(self) -> str:
        """Return the version of velo."""
        return _core.__version__

    async def pid(self) -> int:
        """Return the process id."""
        return os.getpid()

    async def attach(self, asked: bytes, config: StreamConfig) -> Any:
        """Attach to a session.

        Args:
            asked: A name for the attachment, the function and its identity, its name, and the key.
            config: The settings of the function, in process mode.

        Returns:
            None; `"taken"` when the key has an attachment; or the packed exception.

        """
        name, definition, has_state, preload, identity, function, key = _core.loads(asked)
        known = (definition, hash(config))
        if (sessions := self._functions.get(known)) is None:
            reference = Reference.received(definition, has_state, tuple(preload), config)
            spec = _NodeSpec(reference, function, config)
            sessions = self._functions[known] = _NodeSessions(spec, identity)
        loop = asyncio.get_running_loop()
        attaching = self._attaching[name] = loop.create_task(sessions.attach(key))
        try:
            attachment = await attaching
        except asyncio.CancelledError:
            return "left"
        except StreamBusy:
            return "taken"
        except Exception as error:
            return packed(error)
        finally:
            del self._attaching[name]
        attached = self._attached[name] = _Attached(attachment)
        self._start(self._watch(name, attached))
        return None

    async def send(self, blob: bytes) -> None:
        """Send events of an attachment."""
        name, events = _core.loads(blob)
        attached = self._attached.get(name)
        # The answers of `receive` say what a stream that is over has ended with.
        with contextlib.suppress(StreamClosed):
            if attached is not None:
                await attached.stream.send_batch(events)

    async def receive(self, blob: bytes) -> bytes:
        """Wait for results of an attachment, or for its events to be handled, a while at most.

        Args:
            blob: The attachment, and how many events were handled by the last answer.

        Returns:
            The results, how many events are handled, whether the stream is over, and its exception.

        """
        name, seen = _core.loads(blob)
        if (attached := self._attached.get(name)) is None:
            lost = PoolError(
                f"this program has not called for {_GONE:g} s, and so it was detached from its "
                "session: what came since is lost; open the key again"
            )
            return _core.dumps(([], seen, True, packed(lost)))
        results, handled, over, error = await attached.receive(seen)
        if over:
            self._attached.pop(name, None)
        return _core.dumps((results, handled, over, error))

    async def hold(self, name: bytes) -> None:
        """Note that the program of an attachment lives, which has no room for results."""
        if (attached := self._attached.get(name)) is not None:
            attached.hold()

    async def end(self, name: bytes) -> None:
        """End the input of the session."""
        if (attached := self._attached.get(name)) is not None:
            await attached.stream.end()

    async def leave(self, name: bytes, *, waits: bool) -> Any:
        """Detach: the session goes on. `waits`: until all events are handled.

        Returns:
            None, or the packed exception of the function.

        """
        if (attaching := self._attaching.get(name)) is not None:
            attaching.cancel()
        if (attached := self._attached.pop(name, None)) is None:
            return None
        return await attached.leave(waits=waits)

    async def _watch(self, name: bytes, attached: _Attached) -> None:
        """Detach when the program is gone."""
        while self._attached.get(name) is attached:
            await asyncio.sleep(_GONE / 2)
            if attached.is_left:
                await self.leave(name, waits=False)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Attached:
    """One attachment."""

    def __init__(self, stream: Attachment[Any, Any]) -> None:
        self.stream = stream
        self._calls = 0
        self._called = asyncio.get_running_loop().time()

    @property
    def is_left(self) -> bool:
        now = asyncio.get_running_loop().time()
        return not self._calls and now - self._called > _GONE

    def hold(self) -> None:
        self._called = asyncio.get_running_loop().time()

    async def receive(self, seen: int) -> tuple[list[Any], int, bool, Any]:
        results: list[Any] = []
        handled, over, failure = seen, False, None
        self._calls += 1
        try:
            results += await self._next(seen)
            # A worker shows the results of an event before it counts it. So the count comes first,
            # and then its results: a `feed` ends once it has the count of all its events.
            counted = self.stream._progress()[1]
            while not over and len(results) < _MANY:
                more, over = self.stream._drain(_MANY)
                results += more
                if not more:  # nothing of them is left, and no exception behind them
                    handled = counted
                    break
        except StreamClosed:
            over = True
        except Exception as error:
            over, failure = True, packed(error)
        finally:
            self._calls -= 1
            self._called = asyncio.get_running_loop().time()
        return results, handled, over, failure

    async def _next(self, seen: int) -> list[Any]:
        """Wait for results, or until more than `seen` events are handled, a while at most."""
        stream, loop = self.stream, asyncio.get_running_loop()

        async def results() -> list[Any]:
            return await stream.recv_batch(_MANY)

        async def handled() -> None:
            while stream._progress()[1] == seen:
                await stream._wait_until_handled()
                if stream._progress()[0] == seen:
                    await asyncio.sleep(_HOLD)  # no event has been sent

        receiving, handling = loop.create_task(results()), loop.create_task(handled())
        try:
            await asyncio.wait(
                {receiving, handling}, timeout=_HOLD, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            handling.cancel()
            receiving.cancel()  # a cancelled one has taken nothing
        try:
            return await receiving
        except asyncio.CancelledError:
            return []

    async def leave(self, *, waits: bool) -> Any:
        try:
            await (self.stream.aclose() if waits else self.stream._stop())
        except Exception as error:
            return packed(error)
        return None


class _NodeSpec:
    """A function that has come from another machine, as far as sessions need one."""

    has_state = False

    def __init__(self, reference: Reference, name: str, config: StreamConfig) -> None:
        self.reference = reference
        self.name = name
        self.config = config
        self.stats = _core.FunctionStats()
        self._number = 0

    def next_name(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    async def acquire(self) -> Any:
        return _nothing


class _NodeSessions(Sessions):
    """The sessions of such a function."""

    def __init__(self, spec: Any, identity: bytes) -> None:
        super().__init__(spec)
        vars(self).update(_identity=identity, _local_identity=identity)

    def _claim(self) -> None:
        """No other process has sessions of this node."""


def _nothing() -> None:
    pass
