"""Results as messages of QoS 1, each of which the broker acknowledges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from velo.connect._mqtt.link import Broker, Link, Properties, publish_properties
from velo.connect.errors import ConnectError, PermissionDenied
from velo.connect.model import To

__all__ = ["Publisher"]

# The bytes of the largest packet that the protocol has.
_LARGEST = 268_435_455


class Publisher:
    """The sink of a topic. Paho keeps results until they are acknowledged, and sends them again.

    Attributes:
        link: The connection, from the first result on.

    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        topics: Sequence[str],
        client_id: str,
        in_flight: int,
        retain: bool,
        encode: Callable[[Any], bytes],
    ) -> None:
        self.link: Link | None = None
        self._name = name
        self._broker = broker
        self._topics = topics
        self._client_id = client_id
        self._in_flight = in_flight
        self._retain = retain
        self._encode = encode
        # The topics of what the broker has not acknowledged, by packet id; the first refusal.
        self._published: dict[int, str] = {}
        self._acknowledged = asyncio.Event()
        self._refused: ConnectError | None = None

    async def write(self, results: Sequence[To]) -> None:
        """Publish results, all or none of them, with at most `in_flight` unacknowledged.

        Raises:
            ValueError: When a result has no topic, or is larger than the broker takes.
            ConnectError: When the broker is not there, or refuses a result.

        """
        link = await self._open_sink()
        for topic, payload, properties in [self._message(link, to) for to in results]:
            most = min(self._in_flight, getattr(link.limits, "ReceiveMaximum", 65_535))
            while len(self._published) >= most or not link.up.is_set():
                await self._progress(link)
            info = link.client.publish(
                topic, payload, qos=1, retain=self._retain, properties=properties
            )
            self._published[info.mid] = topic
            link.write()

    def _message(self, link: Link, to: To) -> tuple[str, bytes, Properties]:
        """Make a message of a result, with all that paho would refuse of it."""
        topic = to.topic or self._topic_of_sink()
        name = topic.encode()
        if b"+" in name or b"#" in name or len(name) > 65_535:
            raise ValueError(
                f"a result for {topic[:40]!r}: the topic of a message has no wildcards, and at "
                "most 65,535 bytes"
            )
        payload, properties = self._encode(to.value), publish_properties(to.headers)
        size, limit = len(payload), getattr(link.limits, "MaximumPacketSize", _LARGEST)
        more = len(name) + len(properties.pack())  # type: ignore[no-untyped-call]
        if size + more + 64 > limit:
            raise ValueError(
                f"a result for {topic!r} has {size} bytes; the MQTT broker at {self._broker} "
                f"takes packets of at most {limit}"
            )
        return topic, payload, properties

    def _topic_of_sink(self) -> str:
        topic = self._topics[0]
        if len(self._topics) > 1 or "+" in topic or "#" in topic:
            raise ValueError(
                f"a result has no topic, and {', '.join(self._topics)!r} is not one topic: yield "
                "`connect.to(result, topic=...)`"
            )
        return topic

    async def _progress(self, link: Link) -> None:
        """Wait until the broker acknowledges something, or the connection changes."""
        if self._refused is not None:
            raise self._refused
        if link.error is not None:
            raise link.error
        self._acknowledged.clear()
        if link.up.is_set():
            await self._acknowledged.wait()
        else:
            reconnected = asyncio.ensure_future(link.up.wait())
            failed = asyncio.ensure_future(self._acknowledged.wait())
            try:
                await asyncio.wait({reconnected, failed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                reconnected.cancel()
                failed.cancel()

    async def _open_sink(self) -> Link:
        if self._refused is not None:
            raise self._refused
        if self.link is None or self.link.error is not None:
            link = Link(
                self._name,
                self._broker,
                client_id=self._client_id,
                clean_start=True,
                session_expiry=0,
            )
            link.client.on_publish = self._on_publish
            link.on_down = self._acknowledged.set
            await link.open()
            self.link = link
        return self.link

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: Any, _more: Any) -> None:
        assert self.link is not None
        self.link.count()
        topic = self._published.pop(mid, None)
        if code.is_failure and self._refused is None:
            kind = PermissionDenied if code.value == 0x87 else ConnectError
            self._refused = kind(
                f"{self._name}: the MQTT broker at {self._broker} refuses a result for {topic!r}: "
                f"{code}"
            )
        self._acknowledged.set()

    async def flush(self) -> None:
        """Return once the broker has acknowledged all results.

        Raises:
            ConnectError: When it refuses one of them, or the connection.

        """
        while self._published and self.link is not None:
            await self._progress(self.link)
        if self._refused is not None:
            raise self._refused

    async def close(self) -> None:
        """Disconnect."""
        link, self.link = self.link, None
        if link is not None:
            link.on_down = lambda: None
            await link.close()
