"""Publishing results: to JetStream, with a bounded number unacknowledged, or to core NATS."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors

from velo.connect._nats.jetstream import no_stream
from velo.connect._nats.link import REPLY, Link
from velo.connect._nats.messages import ID, Layout, Message
from velo.connect.errors import ConnectError
from velo.connect.model import addressed

__all__ = ["Acknowledged", "Plain"]


class _Results:
    """Makes messages of results."""

    def __init__(
        self, link: Link, name: str, subjects: Sequence[str], layout: Layout, *, limit: float
    ) -> None:
        self._link = link
        self._name = name
        self._subjects = subjects
        self._layout = layout
        self._limit = limit

    async def _messages(self, results: Sequence[tuple[Any, Any]]) -> list[Message]:
        """Make messages of results: of all, or of none."""
        messages = [self._message(key, result) for key, result in results]
        client = await self._link.client()
        for message in messages:
            if len(message.data) > client.max_payload:
                raise ConnectError(
                    f"{self._name}: a result for `{message.subject}` has {len(message.data)} "
                    f"bytes, and the NATS server {self._link.address} takes {client.max_payload} "
                    "(`max_payload`)"
                )
        return messages

    def _message(self, key: Any, result: Any) -> Message:
        to = addressed(key, result)
        subject = to.topic or self._subjects[0]
        if to.topic is None and len(self._subjects) > 1:
            raise ValueError(
                f"{', '.join(self._subjects)}: a sink of several subjects takes results that name "
                "theirs, by `connect.to(result, topic=...)`"
            )
        if any(token in ("*", ">", "") for token in subject.split(".")) or " " in subject:
            raise ValueError(
                f"`{subject}` is no subject to publish to: `connect.to(result, topic=...)` names "
                "one"
            )
        return self._layout.message(to, subject)


class Plain(_Results):
    """Results for core NATS, which acknowledges nothing."""

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Publish results, all or none of them."""
        for message in await self._messages(results):
            while True:
                client = await self._link.ready(self._limit)
                try:
                    await client.publish(
                        message.subject, message.data, headers=message.headers or None
                    )
                    break
                except nats.errors.OutboundBufferLimitError:
                    continue  # the connection was lost just now

    async def flush(self) -> None:
        """Return once the server has read all results."""
        client = await self._link.ready(self._limit)
        await self._link.ask(lambda: client.flush(5), self._limit)

    def close(self) -> None:
        """There is nothing to forget."""


class _Sent(NamedTuple):
    """A result on its way: `answer` is None once it has to be published again."""

    number: int
    message: Message
    answer: asyncio.Future[dict[str, Any]] | None
    outages: int


class Acknowledged(_Results):
    """Results that JetStream has not acknowledged yet, in their order.

    nats-py has a `publish_async`, which gives no answer where the server refuses a message.
    """

    def __init__(self, *args: Any, in_flight: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_flight = in_flight
        self._results: deque[_Sent] = deque()
        # A result that is published again has the same id, by which the server drops it.
        self._run = os.urandom(8).hex()
        self._count = 0
        self._inbox: str | None = None
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._asked = 0
        # Results are flushed while others are written: one of the two changes `_results` at a time.
        self._changing = asyncio.Lock()

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Publish results, all or none of them; waits while `in_flight` are unacknowledged."""
        for message in await self._messages(results):
            if len(self._results) >= self._in_flight:
                await self._settle(self._count - self._in_flight // 2)
            async with self._changing:
                self._count += 1
                message.headers.setdefault(ID, f"{self._run}-{self._count}")
                self._results.append(await self._publish(message, self._count))

    async def flush(self) -> None:
        """Return once the server has acknowledged all results."""
        await self._settle(self._count)

    def close(self) -> None:
        """Forget what was not acknowledged."""
        self._answers.clear()
        self._results.clear()

    async def _publish(self, message: Message, number: int) -> _Sent:
        client = await self._link.client()
        if self._inbox is None:
            inbox = client.new_inbox()
            await client.subscribe(f"{inbox}.*", cb=self._on_answer)
            self._inbox = inbox
        outages = self._link.outages.count
        if not client.is_connected:
            return _Sent(number, message, None, outages)
        self._asked += 1
        answer = asyncio.get_running_loop().create_future()
        self._answers[f"{self._asked}"] = answer
        reply = f"{self._inbox}.{self._asked}"
        await client.publish(message.subject, message.data, reply, message.headers)
        return _Sent(number, message, answer, outages)

    async def _on_answer(self, message: Any) -> None:
        answer = self._answers.pop(message.subject.rpartition(".")[2], None)
        if answer is not None:
            status = (message.headers or {}).get("Status")
            answer.set_result({"error": {"code": status}} if status else json.loads(message.data))

    async def _settle(self, last: int) -> None:
        """Wait until all results up to a number are acknowledged; publish again those lost."""
        began = time.monotonic()
        while self._results and self._results[0].number <= last:
            sent = self._results[0]
            answer = None if sent.answer is None else await self._answer(sent)
            async with self._changing:
                if not self._results or self._results[0] is not sent:
                    continue  # another call has seen to it
                if answer is not None and "error" not in answer:
                    self._results.popleft()
                    continue
                overdue = time.monotonic() - began >= self._limit
                if answer is not None:
                    await self._refused(sent.message, answer["error"], overdue)
                elif overdue:
                    raise self._link.unreachable(self._limit)
                await self._link.ready(self._limit)
                await self._publish_again()

    async def _answer(self, sent: _Sent) -> dict[str, Any] | None:
        """Wait for an answer; None when it is lost with its connection, or overdue."""
        assert sent.answer is not None
        until = time.monotonic() + REPLY
        while not sent.answer.done():
            self._link.check()
            if sent.outages != self._link.outages.count or time.monotonic() >= until:
                return None
            await asyncio.wait({sent.answer}, timeout=0.1)
        return sent.answer.result()

    async def _publish_again(self) -> None:
        """Publish all results that are not acknowledged, in their order."""
        self._answers.clear()
        for index, sent in enumerate(list(self._results)):
            answer = sent.answer
            if answer is None or not answer.done() or "error" in answer.result():
                self._results[index] = await self._publish(sent.message, sent.number)

    async def _refused(self, message: Message, error: dict[str, Any], overdue: bool) -> None:
        """Raise what the server says of a result; return where it only has to be sent again."""
        if error["code"] == "503":
            # There is no stream; also a server that has just started answers so, for a while.
            js = await self._link.jetstream()
            try:
                await self._link.ask(
                    lambda: js.find_stream_name_by_subject(message.subject), self._limit
                )
            except nats.js.errors.NotFoundError as missing:
                raise no_stream(self._link, [message.subject]) from missing
        elif overdue or error["code"] != 503:
            raise ConnectError(
                f"{self._name}: the NATS server {self._link.address} refuses a result for "
                f"`{message.subject}`: {error.get('description', error)}"
            )
        else:
            # A stream that is full until its consumers have acknowledged answers so as well.
            await asyncio.sleep(0.2)
