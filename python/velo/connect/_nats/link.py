"""The connection to NATS servers: made again after an outage, with errors by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    PermissionDenied,
    Unreachable,
)
from velo.connect.settings import Outages, log, login_of
from velo.connect.urls import split

__all__ = ["Link"]

T = TypeVar("T")

# How long a reply of the server may take before the request is sent again.
REPLY = 5.0


class Link:
    """One connection, with one of several servers of a cluster.

    Attributes:
        address: The servers without a password, for messages.
        outages: How often the connection was lost.
        wake: Set when the state of the connection changes.

    """

    def __init__(
        self,
        servers: Sequence[str],
        name: str,
        *,
        user: str | None,
        password: str | None,
        token: str | None,
        credentials: str | None,
        tls: ssl.SSLContext | None,
        connect_timeout: float,
        keepalive: float,
    ) -> None:
        self._servers = []
        for server in servers:
            url = split(server if "://" in server else f"nats://{server}")
            if url.scheme not in {"nats", "tls"}:
                raise ValueError(f"`{url.scheme}://`: the scheme of a NATS server is nats or tls")
            login = login_of(url)
            if "password" in login:
                user, password = user or login["user"], password or login["password"]
            elif login.get("user"):
                token = token or login["user"]
            if url.scheme == "tls" and tls is None:
                tls = ssl.create_default_context()
            self._servers.append(f"{url.scheme}://{url.netloc.rpartition('@')[2]}")
        if user is None and token is None and credentials is None:
            # The variables of the command `nats`.
            user, password = os.environ.get("NATS_USER"), os.environ.get("NATS_PASSWORD")
            token, credentials = os.environ.get("NATS_TOKEN"), os.environ.get("NATS_CREDS")
        self.address = ", ".join(urlsplit(server).netloc for server in self._servers)
        self.outages = Outages(name, self.address)
        self.wake = asyncio.Event()
        self._name = name
        self._user = user
        self._secret = password or token
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._options: dict[str, Any] = {
            "ping_interval": keepalive,
            "max_outstanding_pings": 2,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.2,
            "connect_timeout": min(5.0, connect_timeout),
        }
        if user is not None:
            self._options |= {"user": user, "password": self._guarded}
        elif token is not None:
            self._options["token"] = self._guarded
        if credentials is not None:
            self._options["user_credentials"] = credentials
        if tls is not None:
            self._options["tls"] = tls
        self._client: nats.aio.client.Client | None = None
        self._js: JetStreamContext | None = None
        self._opening = asyncio.Lock()
        self._failed: asyncio.Future[None] | None = None
        self._trouble: Exception | None = None
        self._closing = False
        self._turn = 0

    def _guarded(self) -> str:
        """Give the password, once the connection is as safe as the user has asked for."""
        info = getattr(self._client, "_server_info", {})
        if self._tls is not None and not info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return self._secret or ""

    async def client(self) -> nats.aio.client.Client:
        """Give the client; the first call connects.

        Raises:
            Unreachable: When no server answers within `connect_timeout`.
            AuthenticationFailed: When it refuses the user.

        """
        async with self._opening:
            if self._client is None:
                await self._connect()
        self.check()
        assert self._client is not None
        return self._client

    async def jetstream(self) -> JetStreamContext:
        """Give the context of JetStream."""
        client = await self.client()
        if self._js is None:
            self._js = client.jetstream(timeout=REPLY)
        return self._js

    async def _connect(self) -> None:
        self._failed = asyncio.get_running_loop().create_future()
        self._client = nats.aio.client.Client()
        connecting = asyncio.ensure_future(
            self._client.connect(
                servers=list(self._servers),
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                reconnected_cb=self._on_connected,
                closed_cb=self._on_closed,
                reconnect_to_server_handler=self._next_server,
                **self._options,
            )
        )
        try:
            await asyncio.wait(
                {connecting, self._failed},
                timeout=self._connect_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if connecting.done() and connecting.exception() is not None:
                self._trouble = self._trouble or connecting.exception()  # type: ignore[assignment]
            elif connecting.done():
                if self._tls is not None and not self._client._server_info.get("tls_required"):
                    self._trouble = nats.errors.SecureConnWantedError()
                else:
                    return
            self.check()
            raise Unreachable(
                f"no NATS server at {self.address} within {self._connect_timeout:g} s: "
                f"{self._trouble or 'no answer'}; is it running, and is the address right?"
            ) from self._trouble
        except BaseException:
            connecting.cancel()
            await asyncio.wait({connecting})
            client, self._client = self._client, None
            await self._shut(client)
            raise

    def check(self) -> None:
        """Raise what no other try mends."""
        if self._failed is not None and self._failed.done():
            self._failed.result()

    def _fail(self, error: ConnectError) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # it is raised by the next call, if there is one
        self.wake.set()

    async def _on_error(self, error: Exception) -> None:
        self._trouble = error
        text = str(error).lower()
        user = f"the user `{self._user}`" if self._user else "this program"
        if isinstance(error, nats.errors.AuthorizationError) or (
            "authorization violation" in text or "authentication" in text
        ):
            self._fail(
                AuthenticationFailed(
                    f"the NATS server {self.address} refuses {user}: {error}; give `user=` and "
                    "`password=` (or `password_file=`), `token=` or `credentials=`"
                )
            )
        elif "permissions violation" in text:
            self._fail(
                PermissionDenied(
                    f"{self._name}: the NATS server {self.address} refuses {user}: {error}; its "
                    "permissions need the subject, `$JS.API.>` and `$JS.ACK.>` to publish, and "
                    "`_INBOX.>` to subscribe"
                )
            )
        elif isinstance(error, ssl.SSLError | nats.errors.SecureConnWantedError):
            self._fail(
                Unreachable(
                    f"no TLS with the NATS server {self.address}: {error}; `tls_ca=` names the "
                    "file of the authority that signed its certificate"
                )
            )
        elif isinstance(error, nats.errors.SlowConsumerError):
            log.warning("%s: the client drops a message of `%s`", self._name, error.subject)
        else:
            log.debug("%s: %s", self._name, error)

    def _next_server(self, servers: Sequence[Any], _info: Any) -> tuple[Any, float]:
        """Take turns among the servers, with a longer wait after each attempt."""
        self._turn += 1
        return servers[self._turn % len(servers)], self.outages.wait(self._trouble)

    async def _on_lost(self) -> None:
        self.wake.set()

    async def _on_connected(self) -> None:
        self.outages.over()
        self.wake.set()

    async def _on_closed(self) -> None:
        if not self._closing:
            self._fail(
                ConnectError(
                    f"{self._name}: the NATS server {self.address} has closed the connection: "
                    f"{getattr(self._client, 'last_error', None) or self._trouble}"
                )
            )

    async def ready(self, limit: float | None) -> nats.aio.client.Client:
        """Wait until the connection stands.

        Raises:
            Unreachable: When it does not within `limit` seconds.

        """
        client = await self.client()
        began = time.monotonic()
        while not client.is_connected:
            if limit is not None and time.monotonic() - began >= limit:
                raise self.unreachable(limit)
            self.check()
            await asyncio.sleep(0.02)
        self.check()
        return client

    def unreachable(self, limit: float) -> Unreachable:
        """Give the error of an outage that takes too long."""
        return Unreachable(
            f"{self._name}: no answer of the NATS server {self.address} in {limit:g} s: "
            f"{self._trouble or 'timeout'}"
        )

    async def ask(self, action: Callable[[], Awaitable[T]], limit: float | None = None) -> T:
        """Do a request, again until it is answered.

        Args:
            action: The request. It may be done twice.
            limit: After how many seconds to give up. None: never.

        Raises:
            nats.js.errors.APIError: When the answer is an error.
            ConnectError: When there is no answer, or JetStream is not enabled.

        """
        began = time.monotonic()
        while True:
            await self.ready(limit)
            assert self._failed is not None
            asking = asyncio.ensure_future(action())
            try:
                either: set[asyncio.Future[Any]] = {asking, self._failed}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                self.check()
                return asking.result()
            except nats.js.errors.ServiceUnavailableError as error:
                # A server that has just started answers so until JetStream is ready.
                if time.monotonic() - began > 2.0:
                    raise ConnectError(
                        f"{self._name}: the NATS server {self.address} has no JetStream for this "
                        "account: start it with `nats-server -js`, or use `jetstream=False`"
                    ) from error
                await asyncio.sleep(0.1)
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError, OSError) as error:
                if limit is not None and time.monotonic() - began >= limit:
                    raise self.unreachable(limit) from error
                await asyncio.sleep(0.1)
            except nats.errors.ConnectionClosedError as error:
                self.check()
                raise ConnectError(f"{self._name}: the connection is closed") from error
            finally:
                asking.cancel()

    async def close(self) -> None:
        """Send what is left, and close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await self._shut(client)

    async def _shut(self, client: nats.aio.client.Client) -> None:
        self._closing = True
        with contextlib.suppress(nats.errors.Error, OSError):
            await client.close()
        self._closing = False
