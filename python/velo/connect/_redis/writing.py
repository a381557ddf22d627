"""Adding results to Redis streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from velo.connect._redis.entries import Layout
from velo.connect._redis.link import Link
from velo.connect.model import addressed

__all__ = ["Writing"]

# Results are sent once they have this many bytes, or make a batch.
_BYTES = 1 << 20


class Writing:
    """Results that the server has not answered for yet, in pipelines of XADD."""

    def __init__(
        self,
        link: Link,
        streams: Sequence[str],
        layout: Layout,
        *,
        batch: int,
        maxlen: int | None,
        limit: float,
    ) -> None:
        self._link = link
        self._streams = streams
        self._layout = layout
        self._batch = batch
        self._maxlen = maxlen
        self._limit = limit
        # Commands, with the bytes of each; and how many there were, and were answered.
        self._results: list[tuple[list[Any], int]] = []
        self._bytes = 0
        self._taken = 0
        self._answered = 0
        # One pipeline at a time, as results are flushed while others are written.
        self._sending = asyncio.Lock()

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Take results, all or none of them; waits while a batch is sent."""
        commands = [self._command(key, result) for key, result in results]
        self._results += commands
        self._taken += len(commands)
        self._bytes += sum(size for _, size in commands)
        while len(self._results) >= self._batch or self._bytes >= _BYTES:
            await self._send(self._answered + 1)

    def _command(self, key: Any, result: Any) -> tuple[list[Any], int]:
        to = addressed(key, result)
        stream = to.topic
        if stream is None:
            if len(self._streams) > 1:
                raise ValueError(
                    f"{', '.join(self._streams)}: a sink of several streams takes results that "
                    "name theirs, by `connect.to(result, topic=...)`"
                )
            stream = self._streams[0]
        bounded = () if self._maxlen is None else (b"MAXLEN", b"~", self._maxlen)
        fields = self._layout.fields(to)
        size = 0
        for value in fields[1::2]:
            size += len(value) if isinstance(value, bytes | str) else 8
        return ["XADD", stream.encode(), *bounded, b"*", *fields], size

    async def _send(self, wanted: int) -> None:
        """Send one batch, unless the server has answered as many results as are wanted."""
        async with self._sending:
            if self._answered < wanted:
                await self._send_batch()

    async def _send_batch(self) -> None:
        """Send one batch, and keep of it what the server has refused."""
        batch: list[tuple[list[Any], int]] = []
        size = 0
        for command in self._results[: self._batch]:
            batch.append(command)
            size += command[1]
            if size >= _BYTES:
                break
        replies = await self._link.pipeline([words for words, _ in batch], limit=self._limit)
        refused = [
            (command, reply)
            for command, reply in zip(batch, replies, strict=True)
            if isinstance(reply, Exception)
        ]
        self._results[: len(batch)] = [command for command, _ in refused]
        self._bytes -= size - sum(size for (_, size), _ in refused)
        self._answered += len(batch) - len(refused)
        if refused:
            raise self._link.refusal(refused[0][1]) from refused[0][1]

    async def flush(self) -> None:
        """Return once the server has answered for all results."""
        wanted = self._taken
        while self._answered < wanted:
            await self._send(wanted)
