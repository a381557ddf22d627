"""Results to Kafka, by an idempotent producer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from velo.connect._kafka.link import ClientLog, Link, cause, follows, transient
from velo.connect.errors import ConnectError
from velo.connect.formats import key_bytes
from velo.connect.model import To, addressed
from velo.connect.settings import log

__all__ = ["Messages", "Results", "Writer", "Writing"]

_TOLD = 5.0  # seconds until a client that has failed must have told why

Results = Sequence[tuple[Any, Any]]
_Plain = tuple[str, bytes | None, bytes | None]
_Message = _Plain | tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]
Messages = Sequence[_Message]
"""Results as messages: topic, value, key and perhaps headers. A tombstone has no value."""


@dataclass(frozen=True)
class Writing:
    """How to write; see `kafka` for the fields."""

    topic: str
    encode: Callable[[Any], bytes]
    encode_blocks: bool
    connect_timeout: float
    close_timeout: float
    config: Mapping[str, Any] = field(repr=False)  # it has the password


class Writer:
    """A producer, and one thread for its calls that wait."""

    def __init__(self, writing: Writing, link: Link) -> None:
        self._writing = writing
        self._link = link
        self._thread = ThreadPoolExecutor(1, f"velo {link.name}")
        self._producer: Any = None
        # The first result that was not delivered since the last flush: why, and its topic. The
        # reason of the others replaces an error that only follows from it.
        self._undelivered: tuple[KafkaError, str | None] | None = None
        self._closing = False

    async def write(self, results: Results) -> None:
        """Give results to the producer; waits while its queue is full."""
        if self._producer is None:
            await self._in_thread(self._open)
        # A function of the user may wait, so it runs in the thread.
        if self._writing.encode_blocks:
            messages = await self._in_thread(self._messages, results)
        else:
            messages = self._messages(results)
        begin = 0
        while True:
            begin = self._produce(messages, begin)
            self._link.check()
            if begin == len(messages):
                return
            await self._in_thread(self._called, "poll", 0.1)

    async def flush(self) -> None:
        """Wait until the brokers have all of it.

        Raises:
            ConnectError: The first delivery that failed since the last flush.

        """
        if self._producer is not None:
            await self._in_thread(self._flush)

    async def close(self) -> None:
        """Close the producer; what was not flushed may be lost."""
        self._closing = True
        if self._producer is not None:
            await self._in_thread(self._close)
        self._thread.shutdown()

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    def _open(self) -> None:
        if self._producer is not None:
            return
        config = {
            **self._writing.config,
            "error_cb": self._link.on_error,
            # The client library keeps deliveries to itself, and calls for those that fail.
            "delivery.report.only.error": True,
            "on_delivery": self._on_delivery,
        }
        try:
            producer = Producer(config, logger=ClientLog())
        except KafkaException as error:
            raise ValueError(f"{self._link.name}: {cause(error).str()}") from None
        self._link.metadata(producer, self._writing.topic, lambda: self._closing)
        self._producer = producer

    def _messages(self, results: Results) -> Messages:
        """Make messages of results: of all, before the first is queued.

        Raises:
            TypeError: When a value or a key cannot be encoded.
            ValueError: The same, or a topic or the name of a header.

        """
        encode, topic = self._writing.encode, self._writing.topic
        messages: list[_Message] = []
        for key, result in results:
            if type(result) is To:
                messages.append(self._message(addressed(key, result)))
            else:
                data = None if result is None else encode(result)
                messages.append((topic, data, key.encode() if type(key) is str else key_bytes(key)))
        if self._writing.encode_blocks:  # it is a function of the user
            for message in messages:
                if not isinstance(message[1], bytes | str | None):
                    raise TypeError(f"`encode` has given {type(message[1]).__name__}, not bytes")
        return messages

    def _message(self, to: To) -> _Message:
        topic = to.topic or self._writing.topic
        if not isinstance(topic, str):
            raise TypeError(f"a topic is text, not {type(topic).__name__}")
        if b"\0" in topic.encode():
            raise ValueError(f"a result for the topic {topic!r}, which has a null character")
        for name, _ in to.headers:
            name.encode()  # the client does not survive one that is no UTF-8
        data = None if to.value is None else self._writing.encode(to.value)
        key = key_bytes(to.key)
        return (topic, data, key, list(to.headers)) if to.headers else (topic, data, key)

    def _produce(self, messages: Messages, begin: int) -> int:
        """Queue messages from an index on; the index of the first one that has no room."""
        produce, index = self._producer.produce, begin
        try:
            for index in range(begin, len(messages)):
                message = messages[index]
                if len(message) == 3:
                    produce(*message)
                else:
                    topic, data, key, headers = message
                    produce(topic, data, key, headers=headers)
            index = len(messages)
        except BufferError:
            pass
        except KafkaException as error:
            del produce  # as in `_called`
            raise self._failed(cause(error), messages[index][0]) from None
        self._called("poll", 0)
        return index

    def _called(self, name: str, timeout: float) -> int:
        """Make a call of the producer that calls for deliveries.

        Raises:
            ConnectError: The error that makes the producer useless.

        """
        try:
            # By its name: the client keeps this frame when an error comes beside another, and must
            # not keep itself.
            left: int = getattr(self._producer, name)(timeout)
            return left
        except (KafkaException, SystemError) as error:
            if isinstance(error, SystemError) and error.__cause__ is None:
                # The client has lost the reason, as of a producer that was shut out meanwhile.
                self._link.check()
                self._check_deliveries()
            raise self._failed(cause(error)) from None

    def _flush(self) -> None:
        while self._called("flush", 0.5) and not self._closing:
            self._link.check()
        self._link.check()
        self._check_deliveries()
        if self._link.down:
            self._link.answered()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and (
            self._undelivered is None or (follows(self._undelivered[0]) and not follows(error))
        ):
            self._undelivered = error, message.topic()

    def _check_deliveries(self) -> None:
        if self._undelivered is not None:
            (error, topic), self._undelivered = self._undelivered, None
            raise self._failed(error, topic, "a result was not delivered")

    def _failed(
        self, error: KafkaError, topic: str | None = None, doing: str | None = None
    ) -> ConnectError:
        """Make an error of velo: of the reason, where the client knows one behind its error."""
        reason = self._reason(error) if follows(error) or transient(error) else None
        return reason or self._link.named(error, topic, doing)

    def _reason(self, error: KafkaError) -> ConnectError | None:
        """Give what has made the client useless, if that is why there is this error."""
        deadline = time.monotonic() + _TOLD
        while self._link.failure is None and follows(error) and time.monotonic() < deadline:
            # The client tells it by `on_error`, which this poll calls.
            with contextlib.suppress(KafkaException, SystemError):
                self._producer.poll(0.1)
        return self._link.failure

    def _close(self) -> None:
        try:
            left = self._called("flush", self._writing.close_timeout)
        except ConnectError as error:
            log.info("%s: closed with an error: %s", self._link.name, error)
            left = 0
        if left:
            log.warning(
                "%s: closed with %d results that no broker has taken", self._link.name, left
            )
            self._producer.purge()
        self._producer.close()
        self._producer = None
