"""Results as messages, each of which the server confirms."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from velo.connect._rabbitmq.link import (
    LOST,
    AbstractConnection,
    Link,
    Lost,
    Server,
    amqp,
    properties_of,
)
from velo.connect.errors import ConnectError, NoSuchTopic, PermissionDenied
from velo.connect.formats import key_bytes
from velo.connect.model import To

__all__ = ["Publisher"]


class Publisher:
    """The sink of an exchange.

    Results are kept until the server has confirmed them. The next connection publishes them again,
    in their order.

    Attributes:
        link: The connection, from the first result on.

    """

    def __init__(
        self,
        name: str,
        server: Server,
        queues: Sequence[str],
        exchange: str,
        routing_key: str | None,
        declare: bool,
        in_flight: int,
        encode: Callable[[Any], bytes],
    ) -> None:
        self.link: Link | None = None
        self._name = name
        self._server = server
        self._queues = queues
        self._exchange = exchange
        self._routing_key = routing_key
        self._declare = declare
        self._in_flight = in_flight
        self._encode = encode
        # What the server has not confirmed, in its order; the first refusal.
        self._unconfirmed: dict[int, To] = {}
        self._numbers = itertools.count()
        self._sending: set[asyncio.Task[None]] = set()
        self._channel: Any = None
        self._confirmed = asyncio.Event()
        self._refused: ConnectError | None = None

    async def write(self, results: Sequence[To]) -> None:
        """Publish results, all or none of them, with at most `in_flight` unconfirmed.

        Raises:
            ValueError: When a routing key or a header of a result fits into no message.
            ConnectError: When the server is not there, or refuses a result.

        """
        link = await self._open_sink()
        for message in [self._message(to) for to in results]:
            while len(self._unconfirmed) >= self._in_flight:
                await self._progress(link)
            number = next(self._numbers)
            self._unconfirmed[number] = message
            if link.up.is_set():
                self._send(number)
        if self._refused is not None:
            raise self._refused

    def _message(self, to: To) -> To:
        """Make a message of a result: bytes for a routing key."""
        body = self._encode(to.value)
        topic = to.topic or self._routing_key or self._default_key(to.key)
        if len(topic.encode()) > 255:
            raise ValueError(f"the routing key {topic[:40]!r}... is longer than 255 bytes")
        if to.headers:
            properties_of(to.headers).marshal()  # refused now, or not at all
        return To(body, topic, to.key, to.headers)

    def _default_key(self, key: Any) -> str:
        if not self._exchange:
            return self._queues[0]
        return (key_bytes(key) or b"").decode("utf-8", "replace")

    def _send(self, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._publish(number, self._channel))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _publish(self, number: int, channel: Any) -> None:
        """Publish a result and wait for its confirmation; a lost connection does so again."""
        to = self._unconfirmed[number]
        try:
            await channel.basic_publish(
                to.value,
                exchange=self._exchange,
                routing_key=to.topic,
                properties=properties_of(to.headers),
                mandatory=True,
            )
        except amqp.PublishError:
            where = f"exchange {self._exchange!r}" if self._exchange else "the default exchange"
            self._refuse(
                NoSuchTopic(
                    f"{self._name}: {where} at {self._server} has no queue for the routing key "
                    f"{to.topic!r}: create the queue, or bind one"
                )
            )
        except amqp.DeliveryError as error:
            self._refuse(
                ConnectError(
                    f"{self._name}: the RabbitMQ server at {self._server} refuses a result for "
                    f"{to.topic!r}: {error!r}"
                )
            )
        except LOST:
            return  # published again on the next connection
        else:
            self._unconfirmed.pop(number, None)
        self._confirmed.set()

    def _refuse(self, error: ConnectError) -> None:
        if self._refused is None:
            self._refused = error
        self._confirmed.set()

    async def _open_sink(self) -> Link:
        if self._refused is not None:
            raise self._refused
        if self.link is None or self.link.error is not None:
            link = self.link = Link(
                self._name, self._server, self._set_up_sink, self._confirmed.set
            )
            await link.open()
        return self.link

    async def _set_up_sink(self, connection: AbstractConnection, lost: Lost) -> None:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        if self._exchange:
            await channel.get_exchange(self._exchange, ensure=True)
        elif self._declare:
            for name in self._queues:
                await channel.declare_queue(name, durable=True)
        self._channel = await channel.get_underlay_channel()
        channel.close_callbacks.add(functools.partial(self._channel_closed, lost))
        for number in list(self._unconfirmed):
            self._send(number)

    def _channel_closed(self, lost: Lost, sender: object, error: object) -> None:
        """Tell an error of a result from a lost connection: it would come again for ever."""
        if isinstance(error, amqp.ChannelAccessRefused):
            self._refuse(PermissionDenied(f"{self._name}: {self._server} refuses: {error}"))
        elif isinstance(error, amqp.ChannelNotFoundEntity):
            self._refuse(NoSuchTopic(f"{self._name}: at {self._server}: {error}"))
        elif isinstance(error, amqp.ChannelClosed | amqp.ChannelPreconditionFailed):
            self._refuse(ConnectError(f"{self._name}: {self._server} closed the channel: {error}"))
        lost(sender, error)

    async def _progress(self, link: Link) -> None:
        """Wait until the server confirms something, or the connection changes."""
        if self._refused is not None:
            raise self._refused
        if link.error is not None:
            raise link.error
        self._confirmed.clear()
        await self._confirmed.wait()

    async def flush(self) -> None:
        """Return once the server has confirmed all results.

        Raises:
            ConnectError: When it refuses one of them, or the connection.

        """
        while self._unconfirmed and self.link is not None:
            await self._progress(self.link)
        if self._refused is not None:
            raise self._refused

    async def close(self) -> None:
        """Disconnect."""
        link, self.link = self.link, None
        if link is not None:
            await link.close()
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)
