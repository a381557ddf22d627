"""The connection to a Redis server: made again after an outage, with errors by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    PermissionDenied,
    PositionLost,
    Unreachable,
    missing,
)
from velo.connect.settings import Outages, login_of
from velo.connect.urls import split

try:
    import redis
    import redis.asyncio
    import redis.exceptions as refused
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.retry import Retry as BlockingRetry
except ImportError as error:
    raise missing("`connect.redis`", "redis") from error

__all__ = ["Link"]

T = TypeVar("T")

# The replies of these commands are taken as they come: pairs of a field and a value in their order,
# also where a name comes twice.
_RAW = ("XREADGROUP", "XREAD", "XAUTOCLAIM", "XCLAIM", "XPENDING", "XRANGE", "XADD", "XACK")


def _raw(reply: Any, **_: Any) -> Any:
    return reply


def _execute(client: Any, words: tuple[Any, ...]) -> Awaitable[Any]:
    return client.execute_command(*words)  # type: ignore[no-any-return]


class Link:
    """A pool of connections to one server.

    Attributes:
        address: The server without a password, for messages.
        outages: How often the connection was lost.

    """

    def __init__(
        self,
        server: str,
        name: str,
        *,
        tls: bool,
        connect_timeout: float,
        reply_timeout: float,
        **options: Any,
    ) -> None:
        if "://" not in server:
            server = f"redis://{server}"
        url = split(server)
        if url.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError(f"`{url.scheme}://`: the scheme of a Redis server is redis or rediss")
        if tls and url.scheme == "redis":
            url = url._replace(scheme="rediss")
        login = login_of(url)
        if options.get("username") is None:
            options["username"] = login.get("user") or None
        if options.get("password") is None:
            options["password"] = login.get("password") or os.environ.get("REDISCLI_AUTH")
        options = {setting: value for setting, value in options.items() if value is not None}
        # The address without user and password: the pool reads the rest of it.
        plain = url._replace(netloc=url.netloc.rpartition("@")[2])
        self.address = plain.path if url.scheme == "unix" else plain.netloc
        self.outages = Outages(name, self.address)
        self._name = name
        self._url = plain.geturl()
        self._options = options
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._client: redis.asyncio.Redis | None = None
        # For pipelines, in a thread of its own.
        self._blocking: redis.Redis | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._was_connected = False

    def _open(self) -> redis.asyncio.Redis:
        if self._client is None:
            # An attempt is repeated by `call`: what a group's reader was sent while its connection
            # broke has to be asked for, and not only the next entries.
            retry = Retry(NoBackoff(), 0)
            self._client = redis.asyncio.Redis.from_url(self._url, retry=retry, **self._settings())
            for command in _RAW:
                self._client.set_response_callback(command, cast(Any, _raw))
        return self._client

    def _settings(self) -> dict[str, Any]:
        return {
            "protocol": 2,
            "socket_timeout": self._reply_timeout,
            "socket_connect_timeout": min(self._connect_timeout, self._reply_timeout),
            **self._options,
        }

    async def call(
        self,
        action: Callable[[redis.asyncio.Redis], Awaitable[T]],
        *,
        limit: float | None = None,
        on_outage: Callable[[], None] | None = None,
    ) -> T:
        """Do `action`, again after each outage.

        Args:
            action: What to ask the server for. It may be done twice.
            limit: After how many seconds of an outage to give up. None: never, once the first
                connection was made.
            on_outage: Called before each other try.

        Raises:
            ConnectError: Where the server refuses, or is not there for too long.

        """
        began = time.monotonic()
        while True:
            client = self._open()
            try:
                reply = await action(client)
            except refused.RedisError as error:
                if (fatal := self._fatal(error)) is not None:
                    raise fatal from error
                trouble: Exception = error
                if isinstance(error, refused.ResponseError | refused.BusyLoadingError):
                    # Where a server answers so, its address may lead to another one by now.
                    with contextlib.suppress(refused.RedisError, OSError):
                        await client.connection_pool.disconnect(inuse_connections=False)
            except OSError as error:
                trouble = error
            else:
                self._was_connected = True
                self.outages.over()
                return reply
            most = limit if self._was_connected else self._connect_timeout
            if most is not None and time.monotonic() - began >= most:
                raise Unreachable(
                    f"no reply from the Redis server {self.address} in {most:g} s: {trouble}; is "
                    "it running, and is the address right (`rediss://` for TLS)?"
                ) from trouble
            if not self._was_connected and "SSL" in str(trouble):
                raise Unreachable(
                    f"no TLS with the Redis server {self.address}: {trouble}; `tls_ca=` names the "
                    "file of the authority that signed its certificate"
                ) from trouble
            await asyncio.sleep(self.outages.wait(trouble) if self._was_connected else 0.1)
            if on_outage is not None:
                on_outage()

    async def command(self, *words: Any, limit: float | None = None) -> Any:
        """Send one command; as `call`."""
        return await self.call(lambda client: _execute(client, words), limit=limit)

    async def pipeline(
        self, commands: Sequence[Sequence[Any]], *, limit: float | None = None
    ) -> list[Any]:
        """Send commands at once; as `call`. Gives the replies, with the errors among them.

        The client of asyncio takes some 20 µs for each command and its reply, the blocking one
        five: so that works in a thread.
        """
        replies: list[Any] = []

        async def send(_: redis.asyncio.Redis) -> list[Any]:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, f"velo {self._name}")
            loop = asyncio.get_running_loop()
            rest = commands[len(replies) :]
            replies.extend(await loop.run_in_executor(self._thread, self._send, rest))
            for index, reply in enumerate(replies):
                if self._is_outage(reply):
                    # It is sent again, and to keep the order also what follows it.
                    del replies[index:]
                    raise reply
            return replies

        return await self.call(send, limit=limit)

    def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if self._blocking is None:
            retry = BlockingRetry(NoBackoff(), 0)
            self._blocking = redis.Redis.from_url(self._url, retry=retry, **self._settings())
        with self._blocking.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*words)  # type: ignore[no-untyped-call]
            replies: list[Any] = pipe.execute(raise_on_error=False)
        if any(map(self._is_outage, replies)):
            self._blocking.connection_pool.disconnect()  # as in `call`
        return replies

    def _is_outage(self, reply: Any) -> bool:
        return isinstance(reply, refused.RedisError) and self._fatal(reply) is None

    def refusal(self, error: Exception) -> ConnectError:
        """Give the error of a reply that refuses a command."""
        return self._fatal(error) or ConnectError(f"Redis server {self.address}: {error}")

    def _fatal(self, error: Exception) -> ConnectError | None:
        """Give what no other try mends; None for an outage."""
        text = str(error)
        user = self._options.get("username", "default")
        if isinstance(
            error, refused.AuthenticationError | refused.AuthenticationWrongNumberOfArgsError
        ):
            return AuthenticationFailed(
                f"the Redis server {self.address} refuses the user `{user}`: {text}; give `user=` "
                "and `password=` (or `password_file=`)"
            )
        if isinstance(error, refused.NoPermissionError | refused.AuthorizationError):
            return PermissionDenied(
                f"the Redis server {self.address} refuses a command to the user `{user}`: {text}; "
                "`ACL SETUSER` grants commands and keys"
            )
        if isinstance(error, refused.ReadOnlyError) or text.startswith("UNBLOCKED"):
            return None  # a replica, until the address leads to the primary again
        if isinstance(error, refused.ResponseError):
            # "no such key" comes from XINFO, which does not look for a group without its stream.
            if any(said in text for said in ("NOGROUP", "consumer group", "no such key")):
                return PositionLost(
                    f"{self._name}: the group is not there any more on {self.address}: {text}; its "
                    "stream or the group was deleted, or the server came back without its data. "
                    "Start again: the group is made anew at `start=`"
                )
            if "WRONGTYPE" in text:
                return ConnectError(
                    f"{self._name}: a key of this name on {self.address} is no stream; choose "
                    "another name"
                )
            return ConnectError(f"{self._name}: the Redis server {self.address} answers: {text}")
        if isinstance(error, refused.ConnectionError | refused.TimeoutError):
            return None
        return ConnectError(f"{self._name}: {self.address}: {text}")

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        thread, self._thread = self._thread, None
        if client is not None:
            await client.aclose()
        if thread is not None:
            blocking, self._blocking = self._blocking, None
            if blocking is not None:
                await asyncio.get_running_loop().run_in_executor(thread, blocking.close)
            thread.shutdown()
