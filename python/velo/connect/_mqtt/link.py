"""One connection to an MQTT broker by paho, in the event loop, made again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    PermissionDenied,
    Unreachable,
    missing,
)
from velo.connect.model import Headers
from velo.connect.settings import Outages, log, wait_of

try:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.subscribeoptions import SubscribeOptions
except ImportError as error:
    raise missing("`connect.mqtt`", "mqtt") from error

__all__ = ["Broker", "Link", "MQTTMessage", "Properties", "publish_properties"]

# Reason codes with which another attempt ends as this one did.
_REFUSED_LOGIN = {0x86, 0x87, 0x8A, 0x8C}
_TAKEN_OVER = 0x8E
_FATAL = {0x81, 0x82, 0x84, 0x85, 0x90, 0x95, 0x99, 0x9A, 0x9B, 0x9D} | _REFUSED_LOGIN

# Some brokers close a connection without saying that another one took its session over: then both
# clients would take it from each other for ever.
_SHORT_SECONDS = 10.0
_MOST_SHORT = 5

# So many packets are read before the event loop gets its turn.
_PACKETS_A_TURN = 100


def _properties(kind: int) -> Properties:
    properties: Properties = Properties(kind)  # type: ignore[no-untyped-call]
    return properties


def publish_properties(headers: Headers) -> Properties:
    """Give the properties of a result: its headers as user properties.

    Raises:
        ValueError: When a header is not UTF-8, or longer than a packet can say.

    """
    properties = _properties(PacketTypes.PUBLISH)
    if headers:
        pairs = [(name, value.decode()) for name, value in headers]
        for name, value in headers:
            if max(len(name.encode()), len(value)) > 65_535:
                raise ValueError(f"the header {name[:40]!r} has more than 65,535 bytes")
        properties.UserProperty = pairs
    return properties


@dataclass(frozen=True)
class Broker:
    """Where a broker is, and how to log in."""

    host: str
    port: int
    user: str | None
    password: str | None
    tls: ssl.SSLContext | None
    keepalive: int
    connect_timeout: float

    def __repr__(self) -> str:
        """Give the address alone."""
        return f"{self.host}:{self.port}"


class Link:
    """A connection. Its callbacks run in the event loop.

    Attributes:
        client: Paho's client. Use it between `open` and `close`, while `up` is set.
        up: Set while the connection stands and its topics are subscribed.
        connected: Whether packets may be sent: earlier than `up`.
        on_up: Called before the first message of a connection, with whether the broker has kept
            the session, and so sends again what was not acknowledged.
        on_down: Called when the connection is lost, and when it is given up.
        error: Why the connection is given up; no attempt follows.
        limits: The properties of the broker's answer: receive maximum, largest packet.
        outages: Counts and logs when the connection was lost.

    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        *,
        client_id: str,
        clean_start: bool,
        session_expiry: int,
        receive_maximum: int | None = None,
        filters: Sequence[str] = (),
        qos: int = 1,
    ) -> None:
        self.up = asyncio.Event()
        self.connected = False
        self.error: ConnectError | None = None
        self.limits: Any = None
        self.outages = Outages(name, str(broker))
        self.on_up: Callable[[bool], None] = lambda _: None
        self.on_down: Callable[[], None] = lambda: None
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        self._name = name
        self._broker = broker
        self._client_id = client_id
        self._clean_start = clean_start
        self._properties = _properties(PacketTypes.CONNECT)
        self._properties.SessionExpiryInterval = session_expiry
        if receive_maximum is not None:
            self._properties.ReceiveMaximum = receive_maximum
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # Retained messages come with a new subscription, not with each connection.
        options = SubscribeOptions(qos, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        self._filters = [(name, options) for name in filters]
        self._connack: asyncio.Future[None] | None = None
        self._reply: asyncio.Future[list[Any]] | None = None
        self._down: asyncio.Future[str] | None = None
        self._socket: Any = None
        self._reading = True
        self._packets = 0
        self._timer: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._set_up(self.client)

    def _set_up(self, client: Client) -> None:
        broker = self._broker
        client.connect_timeout = broker.connect_timeout
        client.max_inflight_messages_set(0)  # `mqtt.py` bounds what is in flight
        if broker.user is not None or broker.password is not None:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls is not None:
            client.tls_set_context(broker.tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_socket_close = self._on_socket_close
        client.on_subscribe = self._on_reply
        client.on_unsubscribe = self._on_reply

    def count(self) -> None:
        """Note that a packet was read: more may lie in the socket."""
        self._packets += 1

    async def open(self) -> None:
        """Connect for the first time, and keep the connection from then on.

        Raises:
            ConnectError: When the broker is not there, or refuses.

        """
        try:
            await self._connect()
        except ConnectError as error:
            self.error = error
            raise
        self._keeper = self._loop.create_task(self._keep())

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost, until that has no prospect."""
        short = 0
        try:
            while True:
                assert self._down is not None
                since = self._loop.time()
                why: object = await self._down
                short = short + 1 if self._loop.time() - since < _SHORT_SECONDS else 0
                if short == _MOST_SHORT and self.error is None:
                    self.error = ConnectError(
                        f"{self._name}: the MQTT broker at {self._broker} closed the connection "
                        f"{short} times in a row soon after it stood ({why}): does another program "
                        f"have the `client_id` {self._client_id!r}?"
                    )
                self.on_down()
                while not self.up.is_set():
                    if self.error is not None:
                        return
                    await asyncio.sleep(max(self.outages.wait(why), wait_of(short) if short else 0))
                    try:
                        await self._connect()
                    except Unreachable as error:
                        why = error
                    except ConnectError as error:
                        self.error = error
                self.outages.over()
        except Exception as error:
            self.error = ConnectError(f"{self._name}: {error!r}")
        finally:
            self.on_down()

    async def _connect(self) -> None:
        """Make a connection once, and wait for the broker's answer."""
        self._connack = self._loop.create_future()
        self._down = self._loop.create_future()
        broker, pool = self._broker, ThreadPoolExecutor(1, "velo-mqtt")
        start = functools.partial(
            self.client.connect,
            broker.host,
            broker.port,
            broker.keepalive,
            clean_start=self._clean_start,
            properties=self._properties,
        )
        attempt = self._loop.run_in_executor(pool, start)
        try:
            async with asyncio.timeout(broker.connect_timeout):
                await asyncio.shield(attempt)
                self._socket = self.client.socket()
                if self._socket is None:
                    raise ConnectionError("the connection was closed at once")
                self._watch()
                await self._connack
                if self._filters:
                    await self._subscribe()
                if self._down.done():
                    raise ConnectionError(self._down.result())  # lost right behind the answer
        except ConnectError:
            self._let_go()
            raise
        except (OSError, TimeoutError) as error:
            self._let_go()
            raise Unreachable(self._unreachable(error)) from error
        except BaseException:
            # A thread that still connects leaves no socket behind.
            with contextlib.suppress(Exception):
                await attempt
            self._let_go()
            raise
        finally:
            pool.shutdown(wait=False)
        # Another start would throw away what the session has kept.
        self._clean_start = False
        self.up.set()

    async def _subscribe(self) -> None:
        self._reply = self._loop.create_future()
        self.client.subscribe(self._filters)
        self.write()
        for (name, _), code in zip(self._filters, await self._reply, strict=True):
            if code.is_failure:
                kind = PermissionDenied if code.value in _REFUSED_LOGIN else ConnectError
                raise kind(
                    f"{self._name}: the MQTT broker at {self._broker} refuses to subscribe "
                    f"{name!r}: {code}"
                )

    async def _round_trip(self) -> None:
        """Wait until the broker has read all that was sent: a reply comes in order."""
        self._reply = self._loop.create_future()
        self.client.unsubscribe("velo/never-subscribed")
        self.write()
        await self._reply

    def _unreachable(self, error: BaseException) -> str:
        within = f" within {self._broker.connect_timeout:g} s"
        why = str(error) or f"no answer{within}"
        hint = "is its certificate trusted, and TLS meant?" if "SSL" in why else "does it run?"
        return f"{self._name}: no MQTT broker answers at {self._broker}: {why}; {hint}"

    def _watch(self) -> None:
        if self._reading:
            self._loop.add_reader(self._socket, self._read)
        self._write()
        self._tick()

    def _read(self) -> None:
        try:
            self._read_packets()
        except Exception as error:  # in a callback of the loop it would pass by unseen
            self.error = ConnectError(f"{self._name}: cannot read from {self._broker}: {error!r}")
            self._lost(False, error)

    def _read_packets(self) -> None:
        for _ in range(_PACKETS_A_TURN):
            before, connection = self._packets, self._socket
            if self.client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
            # Bytes that TLS has read already never make the socket readable.
            decrypted = isinstance(connection, ssl.SSLSocket) and connection.pending()
            if (self._packets == before and not decrypted) or not self._reading:
                break
        self.write()

    def write(self) -> None:
        """Send what paho could not send at once."""
        if self._socket is not None and self.client.want_write():
            self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        self.client.loop_write()
        if self._socket is not None and not self.client.want_write():
            self._loop.remove_writer(self._socket)

    def _tick(self) -> None:
        """Send the keep-alive, and find a connection that no longer answers."""
        self._timer = self._loop.call_later(min(1.0, self._broker.keepalive / 4), self._tick)
        # While nothing is read, the answer to a ping lies unread: it is not missing.
        if self._reading:
            self.client.loop_misc()
            self.write()

    def read(self, on: bool) -> None:
        """Read from the broker, or leave it to the network to hold what comes."""
        if on == self._reading:
            return
        self._reading = on
        if self._socket is not None:
            if on:
                self._loop.add_reader(self._socket, self._read)
                self._loop.call_soon(self._read)  # TLS may hold decrypted bytes
            else:
                self._loop.remove_reader(self._socket)

    def _on_reply(self, _client: Any, _data: Any, _mid: int, codes: Any, _more: Any) -> None:
        self._packets += 1
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(codes)

    def _on_connect(self, _client: Any, _data: Any, flags: Any, code: Any, limits: Any) -> None:
        self._packets += 1
        if self._connack is None or self._connack.done():
            return
        if not code.is_failure:
            self.limits = limits
            self.connected = True
            if self._filters and self._keeper is not None and not flags.session_present:
                log.warning(
                    "%s: the MQTT broker at %s has not kept the session: messages that came "
                    "meanwhile are lost",
                    self._name,
                    self._broker,
                )
            self.on_up(flags.session_present)
            self._connack.set_result(None)
        else:
            self._connack.set_exception(self._refused(code))

    def _refused(self, code: Any) -> ConnectError:
        at = f"{self._name}: the MQTT broker at {self._broker}"
        if code.value in _REFUSED_LOGIN:
            user = "without a user" if self._broker.user is None else f"as {self._broker.user!r}"
            return AuthenticationFailed(
                f"{at} refuses the login {user}: {code}; check `user` and `password`"
            )
        if code.value in _FATAL:
            return ConnectError(f"{at} refuses the connection: {code}")
        return Unreachable(f"{at} refuses the connection for now: {code}")

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, code: Any, _more: Any) -> None:
        if threading.get_ident() == self._thread:
            self._lost(flags.is_disconnect_packet_from_server, code)
        else:
            self._loop.call_soon_threadsafe(
                self._lost, flags.is_disconnect_packet_from_server, code
            )

    def _lost(self, said_by_broker: bool, code: Any) -> None:
        self.up.clear()
        self._unwatch()  # paho closes the socket
        at = f"{self._name}: the MQTT broker at {self._broker}"
        if said_by_broker and code.value == _TAKEN_OVER:
            self.error = ConnectError(
                f"{at} gave the session of client id {self._client_id!r} to another connection: "
                "each program needs a `client_id` of its own"
            )
        elif said_by_broker and code.value in _FATAL:
            self.error = ConnectError(f"{at} ended the connection: {code}")
        for reply in (self._connack, self._reply):
            if reply is not None and not reply.done():
                reply.set_exception(self.error or ConnectionError(str(code)))
                reply.exception()  # another error may be raised instead
        if self._down is not None and not self._down.done():
            self._down.set_result(str(code))

    def _on_socket_close(self, _client: Any, _data: Any, connection: Any) -> None:
        if threading.get_ident() == self._thread and self._socket is connection:
            self._unwatch()

    def _unwatch(self) -> None:
        self.connected = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket = None

    def _let_go(self) -> None:
        connection = self._socket
        self._unwatch()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    async def close(self, end_session: bool = False) -> None:
        """Send what is left, and disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self.up.is_set():
            # Closing with unread messages resets the connection, and what was sent last is lost.
            with contextlib.suppress(TimeoutError, OSError, ConnectError):
                async with asyncio.timeout(self._broker.connect_timeout):
                    self.read(True)
                    await self._round_trip()
        if self._socket is not None:
            properties = _properties(PacketTypes.DISCONNECT)
            if end_session:
                properties.SessionExpiryInterval = 0
            self.client.disconnect(properties=properties)
        self.up.clear()
        self._let_go()
