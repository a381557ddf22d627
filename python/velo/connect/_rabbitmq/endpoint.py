"""RabbitMQ: queues as a source that acknowledges what is handled, exchanges as a sink."""

from __future__ import annotations

import asyncio
import functools
import itertools
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import SplitResult, unquote

from velo.connect._rabbitmq.link import (
    LOST,
    AbstractConnection,
    Link,
    Lost,
    Server,
    headers_of,
)
from velo.connect._rabbitmq.publisher import Publisher
from velo.connect.errors import NoSuchTopic
from velo.connect.formats import Decode, Encode, decoder, encoder
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.settings import boolean, decoded, login_of, secret, settings_of
from velo.connect.urls import host_of

__all__ = ["RabbitMq", "of_url", "rabbitmq"]

_BATCH = 500

# So often an empty queue is asked whether other consumers have emptied it, with `until="end"`.
_SECONDS_TO_ASK = 0.5


def rabbitmq(
    server: str,
    queue: str | Sequence[str] | None = None,
    *,
    exchange: str = "",
    routing_key: str | None = None,
    declare: bool = False,
    until: Literal["end"] | None = None,
    prefetch: int = 1000,
    in_flight: int = 1000,
    decode: Decode = "json",
    encode: Encode = "json",
    user: str = "guest",
    password: str | None = None,
    password_file: str | None = None,
    vhost: str = "/",
    tls: bool | ssl.SSLContext = False,
    heartbeat: int = 30,
    connect_timeout: float = 10.0,
) -> RabbitMq:
    """Read queues of a RabbitMQ server, or publish to an exchange.

    Args:
        server: The server, as `host` or `host:port`.
        queue: The queue, or several; each is a partition.
        exchange: The exchange that results go to. "" is the default one, which takes the routing
            key for the name of a queue.
        routing_key: The routing key of results, unless `connect.to` names one. None: the queue, or
            with an `exchange` the key of the result's stream.
        declare: Create a durable queue where there is none. Otherwise a missing one is an error.
        until: "end" finishes when what lay in the queues at the start was read.
        prefetch: How many messages of a queue may wait for their acknowledgement.
        in_flight: How many results may wait for the server's confirmation.
        decode: The format of events: "json", "msgpack", "text", "bytes", `connect.csv(FIELDS)`, or
            a function of bytes.
        encode: The format of results, likewise.
        user: The user name.
        password: The password, by default "guest"; or `password_file`, a file that holds it.
        password_file: See `password`.
        vhost: The virtual host.
        tls: True, or a context with certificates of one's own.
        heartbeat: The seconds between signs of life; three missing ones end the connection.
        connect_timeout: The seconds that connecting may take.

    Raises:
        ValueError: When a setting is out of range.
        ImportError: When aio-pika is not installed.

    """
    host, port = host_of(server, 5671 if tls else 5672)
    queues = [queue] if isinstance(queue, str) else list(queue or ())
    if not queues and not exchange:
        raise ValueError("name a `queue`, or an `exchange` for results")
    if until not in (None, "end"):
        raise ValueError(f'until={until!r}: "end", or leave it out')
    if not 1 <= prefetch <= 65_535 or in_flight < 1 or heartbeat < 1:
        raise ValueError("`prefetch` is 1 to 65,535; `in_flight` and `heartbeat` are at least 1")
    given = secret(password, password_file)
    where = Server(
        host,
        port,
        user,
        "guest" if given is None else given,
        vhost,
        ssl.create_default_context() if tls is True else tls or None,
        heartbeat,
        connect_timeout,
    )
    return RabbitMq(
        where, queues, exchange, routing_key, declare, until == "end", prefetch, in_flight,
        decode, encode,
    )  # fmt: skip


class RabbitMq:
    """A source and a sink; see `rabbitmq`.

    Attributes:
        name: What it reads or writes.
        redelivered: How many messages the server has marked as delivered before.

    """

    def __init__(
        self,
        server: Server,
        queues: Sequence[str],
        exchange: str,
        routing_key: str | None,
        declare: bool,
        until_end: bool,
        prefetch: int,
        in_flight: int,
        decode: Decode,
        encode: Encode,
    ) -> None:
        self.name = f"rabbitmq {', '.join(queues) or exchange}"
        self.redelivered = 0
        self._server = server
        self._queues = queues
        self._exchange = exchange
        self._declare = declare
        self._until_end = until_end
        self._prefetch = prefetch
        self._decode = decoder(decode)
        self._publisher = Publisher(
            self.name, server, queues, exchange, routing_key, declare, in_flight, encoder(encode)
        )
        self._source: Link | None = None
        self._changed = asyncio.Event()
        self._stopped = False
        self._paused: set[Partition] = set()
        # Of each queue: messages that were read; all that are not acknowledged, in their order.
        self._read: dict[Partition, deque[tuple[Position, Any]]] = {}
        self._unacknowledged: dict[Partition, deque[tuple[Position, Any]]] = {}
        self._positions = itertools.count()
        # With `until="end"`: how many messages lay in each queue, and are left to give.
        self._at_start: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._passive: Callable[[str], Any] | None = None

    def __repr__(self) -> str:
        """Queues and server."""
        return f"rabbitmq({str(self._server)!r}, {', '.join(self._queues) or self._exchange!r})"

    @property
    def reconnects(self) -> int:
        """How often a lost connection was made again."""
        links = (self._source, self._publisher.link)
        return sum(link.outages.count for link in links if link is not None)

    # The source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Consume, and give messages in the order of their delivery."""
        if not self._queues:
            raise ValueError(f"{self!r} names no `queue` to read")
        link = await self._open_source()
        while not self._stopped:
            given = False
            for name in self._queues:
                waiting = self._read.get(name)
                most = min(self._left[name], _BATCH) if self._until_end else _BATCH
                if waiting and most and name not in self._paused:
                    count = min(len(waiting), most)
                    batch = [self._record(name, *waiting.popleft()) for _ in range(count)]
                    self._left[name] -= count if self._until_end else 0
                    given = True
                    yield batch
            if given:
                continue
            if link.error is not None:
                raise link.error
            if self._until_end and not any(self._left.values()):
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(_SECONDS_TO_ASK if self._until_end else None):
                    await self._changed.wait()
            except TimeoutError:
                await self._ask_for_end()

    async def _open_source(self) -> Link:
        if self._source is None or self._source.error is not None:
            link = self._source = Link(
                self.name, self._server, self._set_up_source, self._changed.set
            )
            await link.open()
        return self._source

    async def _set_up_source(self, connection: AbstractConnection, lost: Lost) -> None:
        """Consume on a new connection. What an old one has delivered comes again."""
        link = self._source
        assert link is not None
        for name in self._left:
            self._left[name] += len(self._unacknowledged[name]) - len(self._read[name])
        self._read = {name: deque() for name in self._queues}
        self._unacknowledged = {name: deque() for name in self._queues}
        counts = {}
        for name in self._queues:
            channel = await connection.channel()
            channel.close_callbacks.add(lost)
            await channel.set_qos(prefetch_count=self._prefetch)
            queue = await channel.declare_queue(name, durable=True, passive=not self._declare)
            counts[name] = queue.declaration_result.message_count or 0
            underlay = await channel.get_underlay_channel()
            gone = (
                f"{self.name}: the queue {name!r} at {self._server} was deleted while it was read"
            )
            underlay.on_consumer_cancel_callbacks.add(
                functools.partial(_deleted, link, NoSuchTopic(gone))
            )
            await queue.consume(self._taker(name))
        self._at_start = self._at_start or counts
        # What was acknowledged may lie there again as well, when the acknowledgement was lost.
        self._left = {
            name: max(self._left.get(name, 0), min(count, self._at_start[name]))
            for name, count in counts.items()
        }

        async def ask(name: str) -> int:
            async with connection.channel() as channel:
                queue = await channel.declare_queue(name, passive=True)
                return queue.declaration_result.message_count or 0

        self._passive = ask

    def _taker(self, name: str) -> Callable[[Any], Any]:
        read, unacknowledged = self._read[name], self._unacknowledged[name]

        async def take(message: Any) -> None:
            item = (next(self._positions), message)
            read.append(item)
            unacknowledged.append(item)
            self.redelivered += bool(message.redelivered)
            self._changed.set()

        return take

    async def _ask_for_end(self) -> None:
        """See whether what is left to read was taken by other consumers."""
        if self._passive is None or self._source is None or not self._source.up.is_set():
            return
        for name in self._queues:
            if self._left[name] > 0 and name not in self._paused:
                try:
                    count = await self._passive(name)
                except LOST:
                    return  # the link tells
                if count == 0 and not self._read[name]:
                    self._left[name] = 0

    def _record(self, name: str, position: Position, message: Any) -> Record | Bad:
        at = message.timestamp
        key, topic, headers = message.routing_key, name, headers_of(message.headers)
        seconds = at.timestamp() if at is not None else None
        return decoded(self._decode, message.body, key, topic, name, position, seconds, headers)

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Acknowledge the messages up to the positions; those of a lost connection come again."""
        for name, position in positions.items():
            waiting, last = self._unacknowledged.get(name, deque()), None
            while waiting and waiting[0][0] <= position:
                _, last = waiting.popleft()
            if last is not None:
                try:
                    await last.ack(multiple=True)
                except LOST as error:
                    assert self._source is not None
                    self._source.lost(error)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Give no more messages of these queues; the server sends as many as `prefetch`."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Give messages of these queues again."""
        self._paused.difference_update(partitions)
        self._changed.set()

    def stop(self) -> None:
        """End the iteration."""
        self._stopped = True
        self._changed.set()

    def lag(self) -> dict[Partition, int]:
        """How many messages were delivered and not given yet."""
        return {name: len(waiting) for name, waiting in self._read.items()}

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Publish results, with at most `in_flight` unconfirmed.

        Raises:
            ConnectError: When the server is not there, or refuses a result.

        """
        await self._publisher.write([addressed(key, result) for key, result in results])

    async def flush(self) -> None:
        """Return once the server has confirmed all results.

        Raises:
            ConnectError: When it refuses one of them, or the connection.

        """
        await self._publisher.flush()

    async def close(self) -> None:
        """Disconnect."""
        self.stop()
        source, self._source = self._source, None
        if source is not None:
            await source.close()
        await self._publisher.close()


def _deleted(link: Link, error: NoSuchTopic, _frame: object) -> None:
    link.fail(error)


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "queue": str,
    "exchange": str,
    "routing_key": str,
    "declare": boolean,
    "until": str,
    "prefetch": int,
    "in_flight": int,
    "decode": str,
    "encode": str,
    "password_file": str,
    "vhost": str,
    "heartbeat": int,
    "connect_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> RabbitMq:
    """Make the endpoint of `amqp://user:password@host:port/queue?vhost=...`.

    `amqps` stands for TLS. Other programs take the path for the virtual host.
    """
    values = settings_of(settings, _SETTINGS, url.scheme) | login_of(url)
    queue = values.pop("queue", None) or unquote(url.path[1:]) or None
    server = url.netloc.rpartition("@")[2]
    return rabbitmq(server, queue, tls=url.scheme == "amqps", **values)
