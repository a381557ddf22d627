"""One connection to a RabbitMQ server by aio-pika, made again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
    missing,
)
from velo.connect.model import Headers
from velo.connect.settings import Outages

try:
    import aio_pika
    from aio_pika.abc import AbstractConnection
    from aiormq import exceptions as amqp
    from pamqp.commands import Basic
except ImportError as error:
    raise missing("`connect.rabbitmq`", "rabbitmq") from error

__all__ = [
    "LOST",
    "AbstractConnection",
    "Link",
    "Lost",
    "Server",
    "amqp",
    "headers_of",
    "properties_of",
]

# With these, a call on a connection or a channel fails that was lost in the meantime.
LOST = (amqp.AMQPError, amqp.ChannelInvalidStateError, ConnectionError, RuntimeError)


Lost = Callable[[object, object], None]
"""A callback of a connection or channel, to be called with it and with its error when it ends."""


@dataclass(frozen=True)
class Server:
    """Where a server is, and how to log in."""

    host: str
    port: int
    user: str
    password: str
    vhost: str
    tls: ssl.SSLContext | None
    heartbeat: int
    connect_timeout: float

    def __repr__(self) -> str:
        """Give the address alone."""
        return f"{self.host}:{self.port}"


class Link:
    """A connection.

    Attributes:
        up: Set while the connection stands, and is set up.
        error: Why the connection is given up; no attempt follows.
        outages: Counts and logs when the connection was lost.

    """

    def __init__(
        self,
        name: str,
        server: Server,
        set_up: Callable[[AbstractConnection, Lost], Awaitable[None]],
        on_down: Callable[[], None],
    ) -> None:
        self.up = asyncio.Event()
        self.error: ConnectError | None = None
        self.outages = Outages(name, str(server))
        self._name = name
        self._server = server
        self._set_up = set_up
        self._on_down = on_down
        self._loop = asyncio.get_running_loop()
        self._connection: AbstractConnection | None = None
        self._down: asyncio.Future[object] = self._loop.create_future()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect for the first time, and keep the connection from then on.

        Raises:
            ConnectError: When the server is not there, or refuses.

        """
        try:
            await self._connect()
        except ConnectError as error:
            self.error = error
            raise
        self._keeper = self._loop.create_task(self._keep())

    def lost(self, why: object) -> None:
        """Note that the connection, or what was set up on it, is gone."""
        self.up.clear()
        if not self._down.done():
            self._down.set_result(why)

    def fail(self, error: ConnectError) -> None:
        """Give the connection up: another attempt would end in the same way."""
        self.error = self.error or error
        self.lost(error)

    async def _keep(self) -> None:
        try:
            while True:
                why = await self._down
                self._on_down()
                await self._disconnect()
                while not self.up.is_set():
                    if self.error is not None:
                        return
                    await asyncio.sleep(self.outages.wait(why))
                    try:
                        await self._connect()
                    except Unreachable as error:
                        why = error
                    except ConnectError as error:
                        self.error = error
                self.outages.over()
                self._on_down()
        except Exception as error:
            self.error = ConnectError(f"{self._name}: {error!r}")
        finally:
            self._on_down()

    async def _connect(self) -> None:
        server = self._server
        down = self._down = self._loop.create_future()

        def lost(_sender: object, error: object) -> None:
            # A connection that was given up may end much later.
            if down is self._down:
                self.lost(error)

        try:
            async with asyncio.timeout(server.connect_timeout):
                connection = self._connection = await aio_pika.connect(
                    host=server.host,
                    port=server.port,
                    login=server.user,
                    password=server.password,
                    virtualhost=server.vhost,
                    ssl=server.tls is not None,
                    ssl_context=server.tls,
                    heartbeat=server.heartbeat,
                    client_properties={"connection_name": f"velo: {self._name}"},
                )
                connection.close_callbacks.add(lost)
                await self._set_up(connection, lost)
        except ConnectError:
            await self._disconnect()
            raise
        except (OSError, TimeoutError, *LOST) as error:
            await self._disconnect()
            raise self._told(error) from error
        except BaseException:
            await self._disconnect()
            raise
        if not self._down.done():
            self.up.set()

    def _told(self, error: BaseException) -> ConnectError:
        """Say what an error of the library means."""
        at = f"{self._name}: the RabbitMQ server at {self._server}"
        vhost = self._server.vhost
        match error:
            case amqp.ProbableAuthenticationError() | amqp.AuthenticationError():
                return AuthenticationFailed(
                    f"{at} refuses the login as {self._server.user!r}; check `user` and `password`"
                )
            case amqp.ConnectionNotAllowed() if "not found" in str(error):
                return NoSuchTopic(f"{at} has no virtual host {vhost!r}; check `vhost`")
            case amqp.ConnectionNotAllowed():
                return PermissionDenied(
                    f"{at} refuses {self._server.user!r} the virtual host {vhost!r}: {error}"
                )
            case amqp.ChannelNotFoundEntity():
                return NoSuchTopic(f"{at} has no such queue or exchange: {error}; create it first")
            case amqp.ChannelAccessRefused() | amqp.ChannelLockedResource():
                return PermissionDenied(f"{at} refuses: {error}")
            case amqp.ChannelPreconditionFailed():
                return ConnectError(f"{at} refuses: {error}")
        within = f"no answer within {self._server.connect_timeout:g} s"
        why = str(error) or (within if isinstance(error, TimeoutError) else repr(error))
        if isinstance(error, amqp.InvalidFrameError) and "Connection.Close" in why:
            # The library keeps the server's reason to itself; at this step it is about the host.
            return NoSuchTopic(
                f"{at} refuses the virtual host {vhost!r}: it does not exist, or "
                f"{self._server.user!r} may not use it; check `vhost`"
            )
        hint = "is its certificate trusted, and TLS meant?" if "SSL" in why else "does it run?"
        return Unreachable(
            f"{self._name}: no RabbitMQ server answers at {self._server}: {why}; {hint}"
        )

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # The end does not wait for a server that does not answer.
            with contextlib.suppress(TimeoutError, OSError, *LOST):
                async with asyncio.timeout(self._server.connect_timeout):
                    await connection.close()
                    # Tasks of the library that close it have one or two more turns.
                    for _ in range(5):
                        await asyncio.sleep(0)

    async def close(self) -> None:
        """Disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self.up.clear()
        await self._disconnect()


def headers_of(table: Any) -> Headers:
    """Give AMQP headers, whose values have types, as text in UTF-8."""
    return tuple(
        (name, bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode())
        for name, value in (table or {}).items()
    )


def properties_of(headers: Headers) -> Any:
    """Give the properties of a result: it survives a restart of the server."""
    table: dict[str, Any] = {name: _field(value) for name, value in headers}
    now = datetime.now(UTC)
    return Basic.Properties(headers=table, delivery_mode=2, timestamp=now)


def _field(value: bytes) -> str | bytearray:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytearray(value)
