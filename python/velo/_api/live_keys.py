"""Keys whose events come from tasks: `async with fn.keys() as keys`."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo import _core
from velo._api.lanes import MOST_FINISHED, Host, check, guarding
from velo._diagnostics.metrics import KeysMetrics
from velo._environment import check as check_environment
from velo._time_limit import time_limit
from velo.errors import VeloError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from velo._function.spec import FunctionSpec

__all__ = ["Keys"]

In = TypeVar("In")
Out = TypeVar("Out")


class Keys(Generic[In, Out]):
    """Many keys of one function, each with its own run of it: `async with fn.keys() as keys`.

    Any number of tasks of the event loop may send and request, to the same key as well. One task at
    a time receives: `async for key, result in keys`. You can cancel any wait: nothing else is lost,
    and the keys go on.

    A key begins with its first event. Its function runs until it returns, or until its input ends:
    by `end`, after `timeout` idle seconds, or because another key needs its place under
    `max_concurrent`. Its last results arrive then, and its next event begins it anew.

    """

    def __init__(
        self, spec: FunctionSpec, max_pending: int, on_error: Any, finished_keys: str
    ) -> None:
        check(max_pending, on_error, finished_keys)
        self._spec = spec
        self._terms = (max_pending, on_error, finished_keys)
        self._opened: _core.Keys | None = None
        self._results: _core.LiveResults[tuple[Any, Out]] | None = None
        self._host: Host | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done = False

    def send(self, key: Hashable, event: In) -> Awaitable[None]:
        """Send an event to a key.

        Its results arrive in the iteration, with those of all other keys. It waits while
        `max_pending` events and unread results are on their way, in line with other tasks. If that
        wait is cancelled, nothing was sent. A key that is slow holds up no other one.

        Raises:
            TypeError: When the key has no hash, with a note that names it; or when the event cannot
                be sent to a worker.
            BufferFull: With the setting `full="error"`, instead of a wait.
            StreamClosed: After the block or `end_all`, when everything has failed, or, with
                `finished_keys="raise"`, when the function of the key has returned.
            StreamBusy: From another thread or event loop.

        """
        return self._keys.send(key, event)

    def request(self, key: Hashable, event: In) -> Awaitable[list[Out]]:
        """Send an event to a key, and return the list of its results.

        The list is complete when the function asks for its next event, or ends; it is empty when
        the event has no results, or was dropped by `finished_keys="ignore"`. Results of requests
        never appear in the iteration. What a function yields before its first event and after its
        loop belongs to no request: that appears in the iteration.

        A request that is cancelled while it waits for room has sent nothing. One that is cancelled
        later has sent its event; its results are dropped.

        Raises:
            Exception: The exception of the function, with a note that names the key, when the
                function raises at this event. The key is forgotten, with the events that its
                function has not handled; the others go on, and `on_error` is not used.
            StreamClosed: As `send`; also when the function has failed before it took the event.
            WorkerDied: When the worker of the key has died. With `on_error="raise"` all keys fail
                then: it is the cause of a `StreamClosed`.
            TypeError, BufferFull, StreamBusy: As `send`.

        """
        return self._keys.request(key, event)

    def end(self, key: Hashable) -> Awaitable[None]:
        """End the input of a key: its function's loop ends, and its last results arrive.

        Nothing happens when there is no such key. The next event of the key begins it anew, once
        the old run has ended.

        Raises:
            TypeError, StreamClosed, StreamBusy: As `send`.

        """
        return self._keys.end(key)

    def end_all(self) -> Awaitable[None]:
        """End the input of all keys: no more events are accepted, and the last results arrive.

        The iteration ends after them.

        Raises:
            StreamBusy: From another thread or event loop.

        """
        return self._keys.end_all()

    def __aiter__(self) -> AsyncIterator[tuple[Any, Out]]:
        """Receive the results that are no answers to requests, with their keys.

        The iteration ends when all keys have ended after `end_all`, or after the block.

        Raises:
            StreamBusy: When another task receives, or from another thread or event loop.
            Exception: With `on_error="raise"`, the exception of a function, with a note that names
                the key. All keys are cancelled then.

        """
        if self._results is None:
            self._results = self._keys.results()
        return self._results

    @property
    def metrics(self) -> KeysMetrics:
        """A snapshot of the counters, also after the block."""
        return KeysMetrics(*self._keys.live_figures())

    async def aclose(self) -> None:
        """End the input of all keys, and wait until their functions have handled all events.

        The end of the block does this. It waits at most `close_timeout` seconds; then it cancels
        the functions that are left. Results that no task receives are dropped.

        Raises:
            Exception: What everything has failed with, if no task was told.

        """
        if self._opened is None or self._done:
            return
        self._done = True
        keys = self._opened
        keys.close_input(f"the keys of `{self._spec.name}` are closed", True)
        cancels = True
        try:
            async with time_limit(self._spec.config.close_timeout):
                while (waiting := keys.wait_until_over()) is not None:
                    await waiting
            cancels = False
        except TimeoutError:
            pass
        finally:
            await self._stop(cancels)
        if (error := keys.untold_error()) is not None:
            raise error

    async def _stop(self, cancels: bool) -> None:
        assert self._host is not None
        self._done = True
        try:
            await self._host.close(cancel=cancels)
        finally:
            self._keys.stop_live()
            if self._guard is not None:
                await self._guard.aclose()

    async def __aenter__(self) -> Keys[In, Out]:
        if self._opened is not None:
            raise VeloError(
                f"the keys of `{self._spec.name}` were entered already; call `fn.keys()` again"
            )
        check_environment()
        spec, (max_pending, on_error, finished_keys) = self._spec, self._terms
        config = spec.config
        self._loop = loop = asyncio.get_running_loop()
        self._host = host = Host(spec, max_pending)
        settings = (
            *(config.buffer, max_pending, config.max_bytes, config.max_concurrent),
            *(config.timeout is not None, finished_keys, MOST_FINISHED, on_error),
        )
        recovery = None
        if config.mode != "inline" and config.recover != "none":
            recovery = (config.journal_limit, spec.has_state, config.max_restarts)
        keys = _core.Keys(host, iter(()), True, None, host.most_lanes, settings, recovery)
        self._opened = host.keys = keys
        keys.enter(spec.stats)
        self._guard = guarding(host)
        host.guard = weakref.ref(self._guard)
        host.begin(loop)
        keys.begin_live(loop, spec.name, config.mode == "inline", config.full == "error")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.aclose()
        elif not self._done:
            await self._stop(cancels=True)

    @property
    def _keys(self) -> _core.Keys:
        if self._opened is None:
            raise VeloError(
                f"the keys of `{self._spec.name}` are not open: write "
                "`async with fn.keys() as keys`"
            )
        return self._opened

    def __repr__(self) -> str:
        """Name and state."""
        state = "not open" if self._opened is None else "closed" if self._done else "open"
        return f"<Keys of `{self._spec.name}` {state}>"

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is None or self._done:
            return
        warnings.warn(
            f"the keys of `{self._spec.name}` were never closed; "
            "use `async with fn.keys() as keys`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
