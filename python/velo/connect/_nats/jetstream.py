"""Reading the streams of JetStream that have some subjects."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nats.errors
import nats.js.errors

from velo.connect._nats.durable import Durable
from velo.connect._nats.link import REPLY, Link
from velo.connect._nats.messages import Layout
from velo.connect._nats.ordered import Ordered
from velo.connect.errors import ConnectError, NoSuchTopic
from velo.connect.model import Bad, Record

__all__ = ["JetStream", "no_stream"]


def no_stream(link: Link, subjects: Sequence[str]) -> NoSuchTopic:
    """Give the error of subjects that no stream has."""
    listed = ",".join(subjects)
    return NoSuchTopic(
        f"no stream of JetStream on {link.address} has the subject `{listed}`: "
        f"`nats stream add NAME --subjects '{listed}' --defaults` makes one"
    )


class JetStream:
    """Reads several streams in turns; each is a partition.

    Attributes:
        seeks: Whether the messages are read by sequence, so that it can go back.

    """

    def __init__(
        self,
        link: Link,
        subjects: Sequence[str],
        streams: Sequence[str],
        make: Callable[[str, Sequence[str]], Durable | Ordered],
        layout: Layout,
        *,
        until: Any,
        batch: int,
        connect_timeout: float,
        seeks: bool,
    ) -> None:
        self.seeks = seeks
        self._link = link
        self._subjects = subjects
        self._streams = streams
        self._make = make
        self._layout = layout
        self._until = until
        self._batch = batch
        self._connect_timeout = connect_timeout
        self._consumers: dict[str, Durable | Ordered] = {}
        self._sought: Mapping[Any, int] = {}
        self._finished: set[str] = set()

    @property
    def redelivered(self) -> int:
        """How many messages had been delivered before."""
        return sum(consumer.redelivered for consumer in self._consumers.values())

    def seek(self, positions: Mapping[Any, int]) -> None:
        """Begin behind these messages."""
        self._sought = positions

    async def begin(self) -> list[str]:
        """Find the streams and their consumers; give the names of the streams."""
        js = await self._link.jetstream()
        found: dict[str, list[str]] = {}
        for subject in self._subjects:
            for stream in self._streams or await self._streams_of(subject):
                found.setdefault(stream, []).append(subject)
        for stream, subjects in found.items():
            try:
                info = await self._link.ask(lambda s=stream: js.stream_info(s))  # type: ignore[misc]
            except nats.js.errors.NotFoundError as error:
                raise NoSuchTopic(
                    f"there is no stream `{stream}` on {self._link.address}: `nats stream add "
                    f"{stream} --subjects '{','.join(subjects)}' --defaults` makes it"
                ) from error
            consumer = self._make(stream, subjects)
            if stream in self._sought:
                consumer.seek(self._sought[stream])
            try:
                await consumer.begin(self._until, info)
            except nats.js.errors.APIError as error:
                raise ConnectError(
                    f"stream `{stream}` on {self._link.address} refuses the consumer: "
                    f"{error.description}"
                ) from error
            self._consumers[stream] = consumer
        return list(found)

    async def _streams_of(self, subject: str) -> list[str]:
        client = await self._link.client()
        data = json.dumps({"subject": subject}).encode()

        async def names() -> list[str]:
            reply = await client.request("$JS.API.STREAM.NAMES", data, timeout=REPLY)
            answer = json.loads(reply.data)
            if "error" in answer:
                nats.js.errors.APIError.from_error(answer["error"])
            return answer.get("streams") or []

        async def asked() -> list[str]:
            try:
                return await names()
            except nats.errors.NoRespondersError as error:
                raise nats.js.errors.ServiceUnavailableError from error

        streams = await self._link.ask(asked, self._connect_timeout)
        if not streams:
            raise no_stream(self._link, [subject])
        return streams

    async def left(self) -> list[str]:
        """Give the streams that are not read to their end."""
        for stream, consumer in self._consumers.items():
            reached = consumer.bound.reached and stream not in self._finished
            if reached and await consumer.finished():
                self._finished.add(stream)
        return [stream for stream in self._consumers if stream not in self._finished]

    async def read(self, streams: Sequence[str], wait: float) -> list[Record | Bad]:
        """Give the next messages of one of the streams; none when none comes in `wait` seconds."""
        until = time.monotonic() + wait
        while True:
            await self._link.ready(None)
            self._link.wake.clear()
            for stream in streams:
                consumer = self._consumers[stream]
                await consumer.prepare()
                if messages := consumer.take(self._batch):
                    # Another stream's turn is next.
                    self._consumers[stream] = self._consumers.pop(stream)
                    return [self._record(stream, message) for message in messages]
                await consumer.ask(self._batch)
            seconds = until - time.monotonic()
            if seconds <= 0:
                break
            try:
                async with asyncio.timeout(seconds):
                    await self._link.wake.wait()
            except TimeoutError:
                break
        for stream in streams:
            if self._consumers[stream].bound.exists and await self._consumers[stream].finished():
                self._finished.add(stream)
        return []

    def _record(self, stream: str, message: Any) -> Record | Bad:
        data = message.metadata
        timestamp = data.timestamp.timestamp()
        return self._layout.record(message, stream, data.sequence.stream, timestamp)

    async def tend(self) -> None:
        """Keep what takes long, and ask for the lag."""
        for consumer in list(self._consumers.values()):
            await consumer.tend()

    def lag(self) -> dict[Any, int]:
        """How many messages of each stream were not read, as far as is known."""
        return {name: each.lag + each.waiting() for name, each in self._consumers.items()}

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Acknowledge all messages that came up to the positions."""
        for stream, position in positions.items():
            if (consumer := self._consumers.get(stream)) is not None:
                await consumer.commit(position)

    async def end(self) -> None:
        """Give back what was not acknowledged."""
        for consumer in self._consumers.values():
            await consumer.end()
