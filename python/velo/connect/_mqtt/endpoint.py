"""MQTT 5: a source that acknowledges what is handled, and a sink, by paho-mqtt."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import SplitResult, unquote

from velo.connect._mqtt.link import Broker, Link, MQTTMessage
from velo.connect._mqtt.publisher import Publisher
from velo.connect.formats import Decode, Encode, decoder, encoder
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.settings import boolean, decoded, login_of, secret, settings_of
from velo.connect.urls import host_of

__all__ = ["Mqtt", "mqtt", "of_url"]

_BATCH = 500


def mqtt(
    server: str,
    topic: str | Sequence[str],
    *,
    client_id: str | None = None,
    group: str | None = None,
    qos: int = 1,
    start: Literal["committed", "latest"] = "committed",
    until: float | None = None,
    prefetch: int = 1000,
    session_expiry: int = 86_400,
    in_flight: int = 1000,
    retain: bool = False,
    decode: Decode = "json",
    encode: Encode = "json",
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    tls: bool | ssl.SSLContext = False,
    keepalive: int = 30,
    connect_timeout: float = 10.0,
) -> Mqtt:
    """Read topics of an MQTT 5 broker, or publish to one.

    Args:
        server: The broker, as `host` or `host:port`.
        topic: The topic, or several; `+` and `#` are wildcards. A sink publishes to it, where it
            is one topic without wildcards, or to the topic of `connect.to`.
        client_id: The name of the session that the broker keeps. With it, messages of QoS 1 and 2
            that come while the program is down are kept, for `session_expiry`. None: a session of
            this endpoint alone, which outlives a lost connection but not the program.
        group: Share the messages with all sources of the group, by a shared subscription.
        qos: 1, or 0, with which messages may be lost. Messages of QoS 2 come as QoS 1.
        start: "latest" drops the session that the broker has kept.
        until: Where to end: None for never, or seconds since the epoch. Messages carry no time, so
            the time of their receipt counts. Those that come later stay with the session.
        prefetch: How many messages may wait for their acknowledgement, at most 65,535.
        session_expiry: For how many seconds the broker keeps the session of a closed connection.
        in_flight: How many results may wait for the broker's acknowledgement.
        retain: Whether the broker keeps the last result of a topic for new subscribers.
        decode: The format of events: "json", "msgpack", "text", "bytes", `connect.csv(FIELDS)`, or
            a function of bytes.
        encode: The format of results, likewise.
        user: The user name.
        password: The password; or `password_file`, a file that holds it.
        password_file: See `password`.
        tls: True, or a context with certificates of one's own.
        keepalive: The seconds after which a silent connection is checked.
        connect_timeout: The seconds that connecting may take.

    Raises:
        ValueError: When a setting is out of range.
        ImportError: When paho-mqtt is not installed.

    """
    host, port = host_of(server, 8883 if tls else 1883)
    topics = [topic] if isinstance(topic, str) else list(topic)
    if not topics or not all(topics):
        raise ValueError("`topic` names no topic")
    if qos not in (0, 1):
        raise ValueError(
            f"qos={qos}: 0 or 1. A source of QoS 2 would lose the messages that it has received "
            "and not handled when the program dies: the protocol confirms their receipt first. "
            "Messages of QoS 2 arrive with qos=1 as well, each at least once"
        )
    if start not in ("committed", "latest"):
        raise ValueError(f'start={start!r}: "committed" or "latest"; a broker keeps no history')
    if until is not None and (isinstance(until, bool) or not isinstance(until, int | float)):
        raise ValueError(
            f"until={until!r}: None or seconds since the epoch; a broker does not say where the "
            "messages end that it has kept"
        )
    if not 1 <= prefetch <= 65_535:
        raise ValueError(f"prefetch={prefetch}: between 1 and 65,535")
    if in_flight < 1 or keepalive < 1 or session_expiry < 0:
        raise ValueError("`in_flight` and `keepalive` are at least 1, `session_expiry` at least 0")
    context = ssl.create_default_context() if tls is True else tls or None
    broker = Broker(
        host, port, user, secret(password, password_file), context, keepalive, connect_timeout
    )
    return Mqtt(
        broker, topics, client_id, group, qos, start == "latest", until, prefetch,
        session_expiry, in_flight, retain, decode, encode,
    )  # fmt: skip


class Mqtt:
    """A source and a sink; see `mqtt`.

    Attributes:
        name: What it reads or writes.
        reconnects: How often a lost connection was made again.
        redelivered: How many messages the broker has marked as sent before.

    """

    def __init__(
        self,
        broker: Broker,
        topics: Sequence[str],
        client_id: str | None,
        group: str | None,
        qos: int,
        clean_start: bool,
        until: float | None,
        prefetch: int,
        session_expiry: int,
        in_flight: int,
        retain: bool,
        decode: Decode,
        encode: Encode,
    ) -> None:
        self.name = f"mqtt {', '.join(topics)}"
        self.redelivered = 0
        self._broker = broker
        self._topics = topics
        self._lasting = client_id is not None
        self._client_id = client_id or f"velo-{uuid.uuid4().hex[:16]}"
        self._filters = [f"$share/{group}/{topic}" if group else topic for topic in topics]
        self._qos = qos
        self._clean_start = clean_start or not self._lasting
        self._until = until
        self._prefetch = prefetch
        self._session_expiry = session_expiry
        self._decode = decoder(decode)
        sink_id = f"{self._client_id}-sink" if self._lasting else ""
        self._publisher = Publisher(
            self.name, broker, topics, sink_id, in_flight, retain, encoder(encode)
        )
        self._partition: Partition = ", ".join(topics)
        self._source: Link | None = None
        self._changed = asyncio.Event()
        self._stopped = False
        self._paused = False
        # Messages that were read; those of them that the broker wants acknowledged, in order.
        self._read: deque[tuple[Position, MQTTMessage]] = deque()
        self._unacknowledged: deque[tuple[Position, int]] = deque()
        self._positions = itertools.count()

    def __repr__(self) -> str:
        """Topics and server."""
        return f"mqtt({str(self._broker)!r}, {', '.join(self._topics)!r})"

    @property
    def reconnects(self) -> int:
        """How often a lost connection was made again."""
        links = (self._source, self._publisher.link)
        return sum(link.outages.count for link in links if link is not None)

    # The source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Subscribe, and give messages in the order of their receipt."""
        link = await self._open_source()
        while True:
            if self._read and not self._paused:
                count = min(len(self._read), _BATCH)
                batch = [self._record(*self._read.popleft()) for _ in range(count)]
                link.read(len(self._read) <= self._prefetch)
                yield batch
            elif self._stopped or (self._is_over() and not self._read):
                return
            elif link.error is not None:
                raise link.error
            else:
                self._changed.clear()
                seconds = None
                if self._until is not None and not self._read:
                    seconds = self._until - time.time()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), seconds)

    def _is_over(self) -> bool:
        return self._until is not None and time.time() >= self._until

    async def _open_source(self) -> Link:
        if self._source is not None and self._source.error is None:
            return self._source
        link = self._source = Link(
            self.name,
            self._broker,
            client_id=self._client_id,
            clean_start=self._clean_start,
            session_expiry=self._session_expiry,
            receive_maximum=self._prefetch,
            filters=self._filters,
            qos=self._qos,
        )
        link.client.on_message = self._on_message
        link.on_up = self._on_up
        link.on_down = self._changed.set
        await link.open()
        return link

    def _on_up(self, session_present: bool) -> None:
        """Forget what the new connection brings again: its packet ids may be those of others."""
        if session_present:
            again = {position for position, _ in self._unacknowledged}
            self._read = deque(item for item in self._read if item[0] not in again)
        # Without its session, the broker has none of them any more: all that was read is kept.
        self._unacknowledged.clear()

    def _on_message(self, _client: Any, _data: Any, message: MQTTMessage) -> None:
        assert self._source is not None
        self._source.count()
        if self._is_over():
            self._changed.set()
            return  # not acknowledged: it stays with the session
        position = next(self._positions)
        self._read.append((position, message))
        if message.qos:
            self._unacknowledged.append((position, message.mid))
            self.redelivered += message.dup
        if len(self._read) > self._prefetch:
            # Messages of QoS 0, which no acknowledgement holds back.
            self._source.read(False)
        self._changed.set()

    def _record(self, position: Position, message: MQTTMessage) -> Record | Bad:
        topic = message.topic
        pairs = getattr(message.properties, "UserProperty", ())
        headers = tuple((name, value.encode()) for name, value in pairs)
        return decoded(
            self._decode,
            bytes(message.payload),
            topic,
            topic,
            self._partition,
            position,
            None,
            headers,
        )

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Acknowledge the messages up to the position, in the order of their receipt."""
        position = positions.get(self._partition)
        if position is None or self._source is None:
            return
        while self._unacknowledged and self._unacknowledged[0][0] <= position:
            if not self._source.connected:
                return  # the broker sends them again
            _, packet_id = self._unacknowledged.popleft()
            self._source.client.ack(packet_id, 1)
        self._source.write()

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Give no more messages; the broker sends as many as `prefetch`."""
        self._paused = self._paused or self._partition in partitions

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Give messages again."""
        self._paused = self._paused and self._partition not in partitions
        self._changed.set()

    def stop(self) -> None:
        """End the iteration."""
        self._stopped = True
        self._changed.set()

    def lag(self) -> dict[Partition, int]:
        """How many messages were received and not given yet."""
        return {self._partition: len(self._read)}

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Publish results, with at most `in_flight` unacknowledged.

        Raises:
            ValueError: When a result has no topic, or is larger than the broker takes.
            ConnectError: When the broker is not there, or refuses a result.

        """
        await self._publisher.write([addressed(key, result) for key, result in results])

    async def flush(self) -> None:
        """Return once the broker has acknowledged all results.

        Raises:
            ConnectError: When it refuses one of them, or the connection.

        """
        await self._publisher.flush()

    async def close(self) -> None:
        """Disconnect. The session of a `client_id` stays with the broker."""
        self.stop()
        source, self._source = self._source, None
        if source is not None:
            source.client.on_message = None
            source.on_down = lambda: None
            await source.close(end_session=not self._lasting)
        await self._publisher.close()


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "topic": str,
    "client_id": str,
    "group": str,
    "qos": int,
    "start": str,
    "until": float,
    "prefetch": int,
    "session_expiry": int,
    "in_flight": int,
    "retain": boolean,
    "decode": str,
    "encode": str,
    "password_file": str,
    "keepalive": int,
    "connect_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> Mqtt:
    """Make the endpoint of `mqtt://user:password@host:port/topic?client_id=...`.

    `#` begins a URL's fragment: write the wildcard as `%23`, or the topic as a setting. `mqtts`
    stands for TLS.
    """
    values = settings_of(settings, _SETTINGS, url.scheme) | login_of(url)
    server = url.netloc.rpartition("@")[2]
    topic = values.pop("topic", None) or unquote(url.path[1:])
    return mqtt(server, topic, tls=url.scheme == "mqtts", **values)
