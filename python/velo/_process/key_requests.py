"""What a client asks of its supervisor about keys: to be attached, in line if need be."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from velo import _core
from velo.errors import PoolError

if TYPE_CHECKING:
    from velo._config import StreamConfig
    from velo._function.reference import Reference
    from velo._process.client import Client

__all__ = ["Grants", "Taken"]


class Taken(Exception):
    """Somebody is attached, and nobody wanted to wait."""


class _Grant(NamedTuple):
    """A key that this client may attach to."""

    link: int
    number: int
    # Nothing was kept under it.
    fresh: bool


class Grants:
    """The requests for keys of one client."""

    def __init__(self, client: Client) -> None:
        self._client_of = weakref.ref(client)  # which is to be gone with its event loop
        self._requests: dict[int, asyncio.Future[_Grant | None]] = {}
        # What gives back the place of a stream that some request has begun.
        self._places: dict[int, Callable[[], None]] = {}

    async def open(
        self,
        key: bytes,
        shown: str,
        function: Reference,
        config: StreamConfig,
        name: str,
        take_place: Callable[[], Awaitable[Callable[[], None]]],
    ) -> tuple[_core.Opened, Callable[[], None]]:
        """Attach a stream to what is kept under `key`, or begin it.

        Args:
            key: Its digest.
            shown: The key itself, for people who look.
            function: What runs under it.
            config: How.
            name: The name of the stream.
            take_place: Waits for a place among `max_concurrent`, and returns what gives it back.
                For a stream that is begun here.

        Returns:
            The stream, and what is to be called when its end was seen.

        Raises:
            Taken: When somebody is attached, with `overflow="error"`.
            PoolError: When it cannot be had.

        """
        from velo._process.placement import usable_cores

        client, loop = self._client_of(), asyncio.get_running_loop()
        assert client is not None  # it is who asks
        if config.preload:
            client._preload(config.preload)
        definition = function.definition
        while True:
            supervisor = client._connect()
            await client._greet()
            if supervisor is not client._supervisor:
                continue
            if client._most_streams:
                client._check_quota()
            workers = config.workers or client._most_workers or usable_cores()
            try:
                request = supervisor.acquire_key(key, workers, config.overflow == "wait")
            except PoolError:
                client._on_supervisor()  # it has ended, and nobody has noticed
                if supervisor is client._supervisor:
                    raise
                continue
            release: Callable[[], None] | None = None
            try:
                grant = await self._answer(loop, request)
                if grant is None:
                    continue  # the supervisor has ended: another one may be there
                if grant.fresh:
                    release = await take_place()
                link = client.links.get(grant.link)
                if link is not None:
                    link.define(function.number, definition)
                    keep = (key, grant.number, config.timeout, shown)
                    opened = client._open_on(link, loop, function, config, name, keep)
                    if opened is not None:
                        if release is not None:
                            self._places[request] = release
                        left = functools.partial(self._left, supervisor, key, grant.number)
                        return opened, left
            except BaseException:
                self._withdraw(supervisor, request, key)
                if release is not None:
                    release()
                raise
            # The link is closed to new streams: its worker is about to end, or was idle.
            self._withdraw(supervisor, request, key)
            if release is not None:
                release()

    async def _answer(self, loop: asyncio.AbstractEventLoop, request: int) -> _Grant | None:
        future: asyncio.Future[_Grant | None] = loop.create_future()
        self._requests[request] = future
        try:
            return await future
        finally:
            self._requests.pop(request, None)

    def _withdraw(self, supervisor: _core.SupervisorClient, request: int, key: bytes) -> None:
        if self._is_current(supervisor):
            supervisor.release_key(request, key)

    def _left(self, supervisor: _core.SupervisorClient, key: bytes, grant: int) -> None:
        if self._is_current(supervisor):
            supervisor.left_key(key, grant)

    def _is_current(self, supervisor: _core.SupervisorClient) -> bool:
        client = self._client_of()
        return client is not None and client._supervisor is supervisor

    # The supervisor.

    def granted(self, request: int, link: int, grant: int, fresh: bool) -> None:
        """Hear that a request is met."""
        future = self._requests.get(request)
        if future is not None and not future.done():
            future.set_result(_Grant(link, grant, fresh))

    def refused(self, request: int, why: str | None) -> None:
        """Hear that it is not."""
        error = Taken() if why is None else PoolError(f"no worker process: {why}")
        self._fail(request, error)

    def gone(self, request: int) -> None:
        """Hear that what a request has begun has ended."""
        if (release := self._places.pop(request, None)) is not None:
            release()

    def lost(self, error: PoolError | None) -> None:
        """Ask again, or give up, now that the supervisor is gone; its keys are with it."""
        for request, future in list(self._requests.items()):
            if error is not None:
                self._fail(request, error)
            elif not future.done():
                future.set_result(None)
        for request in list(self._places):
            self.gone(request)

    def _fail(self, request: int, error: Exception) -> None:
        future: Any = self._requests.get(request)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # whoever asked may have been cancelled
