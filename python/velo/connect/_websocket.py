"""WebSocket: the messages of a server as a source, and a sink that sends to one, by websockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    Disconnected,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
    missing,
)
from velo.connect.formats import Decode, Encode, decoder
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.settings import Outages, boolean, decoded
from velo.connect.web import (
    Interrupted,
    Interrupts,
    address_of,
    framed,
    login_headers,
    parts_of,
)

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import (
        ConnectionClosed,
        InvalidHandshake,
        InvalidMessage,
        InvalidStatus,
    )
except ImportError as error:
    raise missing("`connect.websocket`", "websocket") from error

__all__ = ["Websocket", "of_url", "websocket"]

_NORMAL = 1000
# The seconds that a server has to answer that a connection is closed.
_CLOSE_SECONDS = 2.0
# A ping follows so many results, or so many bytes or characters of them: a server that is slow
# answers one now and then, whatever waits for it.
_PING_AFTER, _PING_AFTER_SIZE = 16, 256 * 1024
# Close codes with which another attempt ends as this one did, with the error of each: protocol
# errors, messages that the server refuses, and the registered 3000 and 3003. Codes from 4000 on are
# the server's own, and another connection does not mend what they say either.
_FATAL: dict[int, type[ConnectError]] = {
    **dict.fromkeys((1002, 1003, 1007, 1009, 1010), ConnectError),
    1008: PermissionDenied,
    3000: AuthenticationFailed,
    3003: PermissionDenied,
}
_STATUS: dict[int, type[ConnectError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NoSuchTopic,
}


def websocket(
    url: str,
    *,
    subscribe: Sequence[Any] = (),
    decode: Decode = "json",
    encode: Encode = "json",
    binary: bool | None = None,
    reconnect: bool = True,
    in_flight: int = 1000,
    max_size: int = 1024 * 1024,
    keepalive: float = 20.0,
    headers: Mapping[str, str] | None = None,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    token: str | None = None,
    token_file: str | None = None,
    subprotocols: Sequence[str] = (),
    tls: ssl.SSLContext | None = None,
    connect_timeout: float = 10.0,
) -> Websocket:
    """Read the messages of a WebSocket server, or send results to one.

    A source and a sink have a connection each. `connect.messages` reads and answers on one.

    Args:
        url: The address: `wss://host/path`.
        subscribe: Messages that are sent first on each connection, in the format of `encode`.
        decode: The format of events: "json", "msgpack", "text", "bytes", `connect.csv(FIELDS)`, or
            a function of bytes.
        encode: The format of results, likewise.
        binary: Whether results are binary messages. None: unless they are "json" or "text".
        reconnect: Connect again when the connection is lost, with growing pauses. What the server
            sends meanwhile is lost; results are sent again.
        in_flight: How many results may wait until the server is known to have them.
        max_size: The most bytes of a message; a longer one ends the source.
        keepalive: The seconds of silence after which the connection is checked.
        headers: Headers of the request.
        user: The user of HTTP's basic authentication.
        password: The password; or `password_file`, a file that holds it.
        password_file: See `password`.
        token: A bearer token; or `token_file`, a file that holds it.
        token_file: See `token`.
        subprotocols: The subprotocols to offer.
        tls: A context with certificates of one's own, for `wss`.
        connect_timeout: The seconds that connecting may take.

    Raises:
        ValueError: When the URL or a setting does not fit.
        ImportError: When websockets is not installed.

    """
    url, shown, url_user, url_password = address_of(url, ("ws", "wss"))
    if in_flight < 1 or max_size < 1 or keepalive <= 0:
        raise ValueError("`in_flight` and `max_size` are at least 1, `keepalive` is above 0")
    if tls is not None and not url.startswith("wss:"):
        raise ValueError("`tls` needs a URL that begins with wss://")
    login = login_headers(
        headers,
        url_user if user is None else user,
        url_password if password is None and password_file is None else password,
        password_file,
        token,
        token_file,
    )
    frame = framed(encode, binary)
    settings: dict[str, Any] = {
        "additional_headers": login,
        "open_timeout": connect_timeout,
        "max_size": max_size,
        # The library would take a source that is behind for a dead connection.
        "ping_interval": None,
        "close_timeout": _CLOSE_SECONDS,
        "subprotocols": list(subprotocols) or None,
    }
    if tls is not None:
        settings["ssl"] = tls
    first = [frame(message) for message in subscribe]
    server = _Server(url, shown, settings, first, reconnect, keepalive)
    return Websocket(server, decoder(decode), frame, in_flight)


class _Server:
    """Where to connect, and how."""

    def __init__(
        self,
        url: str,
        shown: str,
        settings: dict[str, Any],
        first: list[str | bytes],
        reconnect: bool,
        keepalive: float,
    ) -> None:
        self.shown = shown
        self.reconnect = reconnect
        self.keepalive = keepalive
        self._url = url
        self._settings = settings
        self._first = first

    async def connect(self) -> ClientConnection:
        """Make one attempt.

        Raises:
            ConnectError: When there is no connection; `Unreachable` where a later attempt may do.

        """
        try:
            connection = await connect(self._url, **self._settings)
            for message in self._first:
                await connection.send(message)
        except InvalidStatus as error:
            status = error.response.status_code
            if status >= 500 or status == 429:
                kind: type[ConnectError] = Unreachable
            else:
                kind = _STATUS.get(status, ConnectError)
            raise kind(
                f"the server {self.shown} refuses the WebSocket with status {status}"
            ) from None
        except InvalidHandshake as error:
            # A proxy closes what it has accepted while the server behind it restarts.
            if isinstance(error, InvalidMessage) and isinstance(
                error.__cause__, EOFError | OSError
            ):
                raise self._unreachable(error.__cause__) from error
            raise ConnectError(f"{self.shown} speaks no WebSocket: {error}") from error
        except ConnectionClosed as error:
            raise self.closed(error) from None
        except TimeoutError:
            seconds = self._settings["open_timeout"]
            raise Unreachable(f"no answer of {self.shown} within {seconds:g} s") from None
        except (OSError, EOFError) as error:
            raise self._unreachable(error) from error
        return connection

    def _unreachable(self, error: BaseException) -> Unreachable:
        return Unreachable(f"no WebSocket server answers at {self.shown}: {error}")

    def closed(self, error: ConnectionClosed) -> ConnectError:
        """Give the error of a connection that has ended; `Unreachable` as for `connect`."""
        frame = error.rcvd or error.sent
        if frame is None:
            return Unreachable(f"the connection to {self.shown} broke off")
        code, reason = int(frame.code), f": {frame.reason}" if frame.reason else ""
        by = "the server" if frame is error.rcvd else "velo"
        text = f"{by} has closed the connection to {self.shown} with code {code}{reason}"
        if code == _NORMAL:
            return Disconnected(text)
        if code >= 4000:
            return ConnectError(text)
        return _FATAL.get(code, Unreachable)(text)


class Websocket:
    """A source and a sink; see `websocket`.

    Attributes:
        name: What it reads or sends to.
        reconnects: How often a lost connection was made again.

    """

    def __init__(
        self,
        server: _Server,
        decode: Callable[[bytes], Any],
        frame: Callable[[Any], str | bytes],
        in_flight: int,
    ) -> None:
        self.name = f"websocket {server.shown}"
        self._server = server
        self._decode = decode
        self._interrupts = Interrupts()
        self._outages = Outages(self.name, server.shown)
        self._positions = itertools.count()
        self._sender = _Sender(self.name, server, in_flight)
        self._frame = frame

    def __repr__(self) -> str:
        """Show the server."""
        return f"websocket({self._server.shown!r})"

    @property
    def reconnects(self) -> int:
        """How often a lost connection was made again."""
        return self._outages.count + self._sender.outages.count

    # The source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give each message as it comes. A message is read when it is asked for."""
        connected = False
        while True:
            try:
                connection = await self._interrupts.wait(self._server.connect())
                connected = True
                try:
                    while True:
                        yield [await self._next(connection)]
                finally:
                    await _close(connection)
            except Interrupted:
                return
            except Disconnected:
                return  # the server says that there is no more
            except Unreachable as error:
                if not connected:
                    raise
                if not self._server.reconnect:
                    raise Disconnected(str(error)) from error
                wait = self._outages.wait(error)
                with contextlib.suppress(Interrupted):
                    await self._interrupts.wait(asyncio.sleep(wait))

    async def _next(self, connection: ClientConnection) -> Record | Bad:
        try:
            data = await self._interrupts.wait(self._receive(connection))
        except ConnectionClosed as error:
            raise self._server.closed(error) from None
        self._outages.over()
        shown = self._server.shown
        return decoded(self._decode, data, None, shown, shown, next(self._positions))

    async def _receive(self, connection: ClientConnection) -> bytes:
        pong = None
        while True:
            try:
                async with asyncio.timeout(self._server.keepalive):
                    return await connection.recv(decode=False)
            except TimeoutError:
                if pong is not None and not pong.done():
                    connection.transport.abort()
                    raise Unreachable(
                        f"{self._server.shown} has not answered a ping for "
                        f"{self._server.keepalive:g} s"
                    ) from None
                if pong is not None:
                    self._outages.over()
                pong = asyncio.ensure_future(await connection.ping())

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: WebSocket has no acknowledgements."""

    def stop(self) -> None:
        """Read no more."""
        self._interrupts.stop()

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Send results, each as a message, with at most `in_flight` that are unconfirmed.

        Raises:
            ConnectError: When the server is not there, or closes the connection for good.

        """
        frames = [self._frame(addressed(key, result).value) for key, result in results]
        await self._sender.send(frames)

    async def flush(self) -> None:
        """Return once the server has answered a ping that follows the results.

        Raises:
            ConnectError: As `write`.

        """
        await self._sender.flush()

    async def close(self) -> None:
        """Close the connections."""
        self.stop()
        await self._sender.close()


class _Sender:
    """The connection of a sink, and the results that its server may not have yet."""

    def __init__(self, name: str, server: _Server, in_flight: int) -> None:
        self.outages = Outages(name, server.shown)
        self._server = server
        self._in_flight = in_flight
        self._unconfirmed: list[str | bytes] = []
        self._unsent = 0
        # The pings without an answer, each with the number of messages between it and the one
        # before; and the messages that were sent behind the last one, with their size.
        self._pings: deque[tuple[asyncio.Future[float], int]] = deque()
        self._behind = self._size = 0
        self._connection: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._connected = False

    async def send(self, frames: Sequence[str | bytes]) -> None:
        """Send messages; the ones before the last `in_flight` are known to have arrived."""
        async with self._lock:
            for start in range(0, len(frames), self._in_flight):
                some = frames[start : start + self._in_flight]
                await self._confirm(self._in_flight - len(some))
                self._unconfirmed.extend(some)
                self._unsent += len(some)
                await self._until_done(self._push)

    async def flush(self) -> None:
        """Wait until all messages are known to have arrived."""
        async with self._lock:
            await self._confirm(0)

    async def _confirm(self, most: int) -> None:
        """Wait until no more than so many messages may not have arrived."""
        while len(self._unconfirmed) > most:
            await self._until_done(self._next_pong)

    async def _until_done(self, step: Callable[[ClientConnection], Any]) -> None:
        """Take a step on the connection, which is made again as often as it is lost."""
        while True:
            try:
                if self._connection is None:
                    await self._open()
                assert self._connection is not None
                try:
                    await step(self._connection)
                except ConnectionClosed as error:
                    raise self._server.closed(error) from None
                return
            except Unreachable as error:
                await self.close()
                if not self._connected:
                    raise
                if not self._server.reconnect:
                    raise Disconnected(
                        f"{error}; {len(self._unconfirmed)} results may not have arrived"
                    ) from error
                await asyncio.sleep(self.outages.wait(error))

    async def _open(self) -> None:
        self._connection = await self._server.connect()
        self._connected = True
        self._unsent = len(self._unconfirmed)
        self._behind = self._size = 0
        # What the server sends would hold up its pongs.
        self._reading = asyncio.create_task(_discard(self._connection))

    async def _push(self, connection: ClientConnection) -> None:
        while self._unsent:
            frame = self._unconfirmed[-self._unsent]
            await connection.send(frame)
            self._unsent -= 1
            self._behind += 1
            self._size += len(frame)
            if self._behind >= _PING_AFTER or self._size >= _PING_AFTER_SIZE:
                await self._ping(connection)

    async def _ping(self, connection: ClientConnection) -> None:
        self._pings.append((asyncio.ensure_future(await connection.ping()), self._behind))
        self._behind = self._size = 0

    async def _next_pong(self, connection: ClientConnection) -> None:
        await self._push(connection)
        if self._behind:
            await self._ping(connection)
        pong, _ = self._pings[0]
        await asyncio.wait({pong}, timeout=self._server.keepalive)  # which leaves it as it is
        if not pong.done():
            connection.transport.abort()
            raise Unreachable(
                f"{self._server.shown} has not answered a ping for {self._server.keepalive:g} s"
            )
        pong.result()
        self._take_pongs()
        self.outages.over()

    def _take_pongs(self) -> None:
        """Forget the messages that are known to have arrived."""
        while self._pings and _has_come(self._pings[0][0]):
            _, count = self._pings.popleft()
            del self._unconfirmed[:count]

    async def close(self) -> None:
        """Close the connection."""
        self._take_pongs()
        self._pings.clear()
        connection, self._connection = self._connection, None
        reading, self._reading = self._reading, None
        if connection is not None:
            await connection.close()
        if reading is not None:
            await reading


async def _close(connection: ClientConnection) -> None:
    """Close a connection. Messages that were not read would hold up the answer of the server."""
    reading = asyncio.create_task(_discard(connection))
    try:
        await connection.close()
    finally:
        await reading


def _has_come(pong: asyncio.Future[float]) -> bool:
    return pong.done() and not pong.cancelled() and pong.exception() is None


async def _discard(connection: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()


def _texts(text: str) -> list[str]:
    return [text]


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "subscribe": _texts,
    "decode": str,
    "encode": str,
    "binary": boolean,
    "reconnect": boolean,
    "in_flight": int,
    "max_size": int,
    "keepalive": float,
    "user": str,
    "password_file": str,
    "token_file": str,
    "connect_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> Websocket:
    """Make the endpoint of `wss://host/feed?decode=text`.

    Parameters that are no settings are the server's.
    """
    address, values = parts_of(url, settings, _SETTINGS)
    return websocket(address, **values)
