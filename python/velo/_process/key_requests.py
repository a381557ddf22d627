"""The requests of a client to attach to keys, which its supervisor grants one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from velo import _core
from velo.errors import PoolError

if TYPE_CHECKING:
    from velo._config import StreamConfig
    from velo._function.reference import Reference
    from velo._function.spec import FunctionSpec
    from velo._process.connection import Connection
    from velo._process.links import Link

__all__ = ["KeyRequests", "KeyTaken"]


class KeyTaken(Exception):
    """The key has an attachment, and the request was not to wait for its end."""


class LinkOwner(Protocol):
    """The client, as far as requests need it."""

    @property
    def links(self) -> Mapping[int, Link]:
        """The links by number."""

    def check_quota(self) -> None:
        """Refuse a stream over what the supervisor allows one process."""

    def open_on(
        self,
        link: Link,
        loop: asyncio.AbstractEventLoop,
        function: Reference,
        config: StreamConfig,
        name: str,
        session: _core.SessionGrant,
    ) -> _core.Opened | None:
        """Open a stream on a link. None: the link takes no more."""


class KeyRequests:
    """The requests for keys of one client.

    Args:
        connection: To the supervisor.
        client: The client. It is to be gone with its event loop, so this does not keep it alive.

    """

    def __init__(self, connection: Connection, client: LinkOwner) -> None:
        self._connection = connection
        self._client_of = weakref.ref(client)
        self._requests: dict[int, asyncio.Future[_core.Report.KeyGranted | None]] = {}
        # By request: releases the permit of the session that it has begun.
        self._permits: dict[int, Callable[[], None]] = {}

    async def open(
        self, key: bytes, shown: str, spec: FunctionSpec, name: str, stored: bytes
    ) -> tuple[_core.Opened, Callable[[], None]]:
        """Attach a stream to the session under `key`, or begin it.

        Args:
            key: Its digest.
            shown: The key itself, as `velo status` shows it.
            spec: The function. A session that is begun here takes one of its permits.
            name: The name of the stream.
            stored: How a checkpoint knows the session; empty for a function without a state.

        Returns:
            The stream, and what to call when its end was received.

        Raises:
            KeyTaken: When the key has an attachment, with `overflow="error"`.
            PoolError: When there is no worker to run it.

        """
        client, loop = self._client_of(), asyncio.get_running_loop()
        assert client is not None  # it has called this
        connection, config = self._connection, spec.config
        if config.preload:
            connection.preload(config.preload)
        function = spec.reference
        definition = function.definition
        while True:
            supervisor = connection.connect()
            await connection.greet()
            if supervisor is not connection.supervisor:
                continue
            if connection.most_streams:
                client.check_quota()
            workers = config.workers or connection.most_workers or _core.usable_cores()
            try:
                request = supervisor.acquire_key(key, workers, config.overflow == "wait")
            except PoolError:
                connection.poll()  # it has ended, which was not noticed yet
                if supervisor is connection.supervisor:
                    raise
                continue
            release: Callable[[], None] | None = None
            try:
                grant = await self._answer(loop, request)
                if grant is None:
                    continue  # the supervisor has ended: another one may be there
                if grant.fresh:
                    release = await spec.acquire()
                # Another supervisor has grants and links of its own, with the same numbers.
                same = supervisor is connection.supervisor
                link = client.links.get(grant.link) if same else None
                if link is not None:
                    link.define(function, definition)
                    session = _core.SessionGrant(
                        key=key,
                        grant=grant.grant,
                        timeout=config.timeout,
                        shown=shown,
                        stored=stored,
                    )
                    opened = client.open_on(link, loop, function, config, name, session)
                    if opened is not None:
                        if release is not None:
                            self._permits[request] = release
                        on_left = functools.partial(self._left, supervisor, key, grant.grant)
                        return opened, on_left
            except BaseException:
                self._withdraw(supervisor, request, key)
                if release is not None:
                    release()
                raise
            # The link is closed to new streams, as its worker is about to end or was idle; or the
            # supervisor has ended.
            self._withdraw(supervisor, request, key)
            if release is not None:
                release()

    async def _answer(
        self, loop: asyncio.AbstractEventLoop, request: int
    ) -> _core.Report.KeyGranted | None:
        future: asyncio.Future[_core.Report.KeyGranted | None] = loop.create_future()
        self._requests[request] = future
        try:
            return await future
        finally:
            self._requests.pop(request, None)

    def _withdraw(self, supervisor: _core.SupervisorClient, request: int, key: bytes) -> None:
        if self._connection.supervisor is supervisor:
            with contextlib.suppress(PoolError):  # it has ended, which was not noticed yet
                supervisor.release_key(request, key)

    def _left(self, supervisor: _core.SupervisorClient, key: bytes, grant: int) -> None:
        if self._connection.supervisor is supervisor:
            with contextlib.suppress(PoolError):  # it has ended, which was not noticed yet
                supervisor.left_key(key, grant)

    # Reports of the supervisor.

    def on_granted(self, grant: _core.Report.KeyGranted) -> None:
        """Pass a grant on to the request."""
        future = self._requests.get(grant.request)
        if future is not None and not future.done():
            future.set_result(grant)

    def on_refused(self, request: int, why: str | None) -> None:
        """Fail a request. Without a reason, the key has an attachment."""
        error = KeyTaken() if why is None else PoolError(f"no worker process: {why}")
        self._fail(request, error)

    def on_ended(self, request: int) -> None:
        """Release the permit of a session that has ended."""
        if (release := self._permits.pop(request, None)) is not None:
            release()

    def on_lost(self, error: PoolError | None) -> None:
        """Ask again, or fail all requests, now that the supervisor is gone, and its keys with it.

        Args:
            error: What requests fail with. None: they are asked again, of the next supervisor.

        """
        for request, future in list(self._requests.items()):
            if error is not None:
                self._fail(request, error)
            elif not future.done():
                future.set_result(None)
        for request in list(self._permits):
            self.on_ended(request)

    def _fail(self, request: int, error: Exception) -> None:
        future: Any = self._requests.get(request)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # the task that waits for it may have been cancelled
