"""The sources of velo-stream 0.x, for programs that come from there.

They give `StreamEvent`s. New programs use `velo.connect`: its sources are read no faster than
functions handle events, and are committed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velo import connect
from velo.connect.model import Bad

if TYPE_CHECKING:
    import httpx

__all__ = ["FileAdapter", "GeneratorAdapter", "HttpAdapter", "StreamEvent"]


@dataclass
class StreamEvent:
    """An event of an adapter.

    Attributes:
        id: A name of its own.
        data: The event.
        metadata: Where it is from.

    """

    id: str
    data: Any
    metadata: dict[str, Any] | None = None


class FileAdapter:
    """Reads files, through `connect.file` where they have lines."""

    @staticmethod
    async def stream_lines(
        path: str | os.PathLike[str], encoding: str = "utf-8"
    ) -> AsyncIterator[StreamEvent]:
        """Give the lines of a file that are not empty. Packed files are unpacked.

        Raises:
            OSError: When the file cannot be read.
            UnicodeDecodeError: When a line is not in this encoding.

        """
        if not os.path.exists(path):  # noqa: ASYNC240
            raise FileNotFoundError(f"there is no file `{os.fspath(path)}`")
        source = connect.file(path, decode=lambda line: line.decode(encoding))
        async for event in _records(source, {"file": os.fspath(path)}):
            yield event

    @staticmethod
    async def stream_bytes(
        path: str | os.PathLike[str], chunk_size: int = 8192
    ) -> AsyncIterator[StreamEvent]:
        """Give a file in pieces of `chunk_size` bytes.

        Raises:
            OSError: When the file cannot be read.

        """
        with open(path, "rb") as file:  # noqa: ASYNC230
            while data := await asyncio.to_thread(file.read, chunk_size):
                metadata = {"file": os.fspath(path), "chunk_size": len(data)}
                yield _event(data, metadata)

    @staticmethod
    async def stream_stdin() -> AsyncIterator[StreamEvent]:
        """Give the lines of the standard input, each as it comes."""
        while line := await asyncio.to_thread(sys.stdin.readline):
            yield _event(line.rstrip("\r\n"), {"source": "stdin"})


class HttpAdapter:
    """Reads the lines of HTTP responses, through `connect.http`, or a client of your own.

    Args:
        client: The client to use, which stays open; else one for each response.

    """

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        self.client = client

    async def stream_lines(self, url: str, **request: Any) -> AsyncIterator[StreamEvent]:
        """Give the lines of a response that are not empty.

        Without a client of your own, `request` takes the settings of `connect.http`: `headers`, for
        example. With one, it takes those of its `stream`.

        Raises:
            Exception: When the server cannot be reached, or refuses.

        """
        metadata = {"url": url}
        if self.client is None:
            source = connect.http(url, **{"decode": "text", **request})
            async for event in _records(source, metadata):
                yield event
            return
        async with self.client.stream("GET", url, **request) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line:
                    yield _event(line, metadata | {"status": response.status_code})


class GeneratorAdapter:
    """Wraps what gives values already. Stream functions take all of it without a wrapper, too."""

    @staticmethod
    async def from_async_generator(
        generator: AsyncIterable[Any], event_id_fn: Callable[[Any], str] | None = None
    ) -> AsyncIterator[StreamEvent]:
        """Give the items of an async iterable; `event_id_fn` names each of them."""
        async for item in generator:
            event = _event(item)
            if event_id_fn is not None:
                event.id = event_id_fn(item)
            yield event

    @staticmethod
    async def from_iterable(
        items: AsyncIterable[Any] | Iterable[Any],
    ) -> AsyncIterator[StreamEvent]:
        """Give the items of an iterable, async or not."""
        if isinstance(items, AsyncIterable):
            async for item in items:
                yield _event(item)
        else:
            for item in items:
                yield _event(item)

    @staticmethod
    async def from_callback(
        callback: Callable[[], Any], stop_fn: Callable[[], bool], interval_ms: float = 100
    ) -> AsyncIterator[StreamEvent]:
        """Call `callback` every `interval_ms` until `stop_fn` says so, and give what is not None.

        Raises:
            Exception: What `callback` raises, which velo-stream 0.x dropped.

        """
        while not stop_fn():
            if (data := callback()) is not None:
                yield _event(data)
            await asyncio.sleep(interval_ms / 1000)


def _event(data: Any, metadata: dict[str, Any] | None = None) -> StreamEvent:
    return StreamEvent(str(uuid.uuid4()), data, metadata)


async def _records(source: Any, metadata: dict[str, Any]) -> AsyncIterator[StreamEvent]:
    """Give the values of a source of lines, and let go of it at the end."""
    try:
        async for batch in source:
            for item in batch:
                if isinstance(item, Bad):
                    raise item.error
                yield _event(item.value, dict(metadata))
    finally:
        await source.close()
