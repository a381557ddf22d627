"""HTTP: the lines of a response as a source, and a sink that posts lines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult

from velo.connect.errors import Unreachable, missing
from velo.connect.formats import Decode, Encode, encoder, line_decoder
from velo.connect.lines import Lines
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.settings import Outages, add_line, boolean
from velo.connect.web import (
    Interrupts,
    address_of,
    login_headers,
    next_of,
    parts_of,
    read_on,
)

try:
    from velo.connect.http_client import Requests
except ImportError as error:
    raise missing("`connect.http`", "http") from error

__all__ = ["Http", "http", "of_url"]

_MANY = 500
# A request has no more bytes than that, unless one result has.
_REQUEST_BYTES = 1024 * 1024
# A server that asks for a longer pause is asked again after this one; seconds.
_LONGEST_PAUSE = 60.0


def http(
    url: str,
    *,
    decode: Decode = "json",
    encode: Encode = "json",
    reconnect: bool = False,
    max_line: int = 16 * 1024 * 1024,
    read_timeout: float | None = None,
    batch: int = 500,
    retries: int = 10,
    content_type: str = "application/x-ndjson",
    headers: Mapping[str, str] | None = None,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    token: str | None = None,
    token_file: str | None = None,
    tls: ssl.SSLContext | None = None,
    connect_timeout: float = 10.0,
) -> Http:
    """Read the lines of a response, or post results as lines.

    Args:
        url: The address: `https://host/path`. A source gets it, a sink posts to it.
        decode: The format of a line: "json", "text", "bytes", "csv" (the first line of a response
            is the header; see `velo.connect.csv`), or a function of bytes. Empty lines are skipped.
        encode: The format of a result, likewise.
        reconnect: Request again when a response breaks off. What the server sends meanwhile may be
            lost.
        max_line: The most bytes of a line; longer lines are no events.
        read_timeout: The seconds that a response may be silent behind its head. None: for ever.
        batch: How many results a request has at most.
        retries: How often a request of results is made again, with growing pauses, when there is
            no answer, or one with status 408, 425, 429 or from 500 on.
        content_type: The type of the bodies of a sink.
        headers: Headers of the requests.
        user: The user of basic authentication.
        password: The password; or `password_file`, a file that holds it.
        password_file: See `password`.
        token: A bearer token; or `token_file`, a file that holds it.
        token_file: See `token`.
        tls: A context with certificates of one's own.
        connect_timeout: The seconds that the head of a response may take.

    Raises:
        ValueError: When the URL or a setting does not fit.
        ImportError: When httpx is not installed.

    """
    url, shown, url_user, url_password = address_of(url, ("http", "https"))
    if batch < 1 or max_line < 1 or retries < 0:
        raise ValueError("`batch` and `max_line` are at least 1, `retries` at least 0")
    if "msgpack" in (decode, encode):
        raise ValueError('"msgpack" is no format of lines: it may have line ends in it')
    login = login_headers(
        headers,
        url_user if user is None else user,
        url_password if password is None and password_file is None else password,
        password_file,
        token,
        token_file,
    )
    requests = Requests(url, shown, login, tls, connect_timeout, read_timeout)
    poster = _Poster(f"http {shown}", requests, batch, retries, content_type)
    return Http(requests, line_decoder(decode), encoder(encode), reconnect, max_line, poster)


class Http:
    """A source and a sink; see `http`.

    Attributes:
        name: What it reads or posts to.
        reconnects: How often a lost server was reached again.

    """

    def __init__(
        self,
        requests: Requests,
        new_decoder: Callable[[], Callable[[bytes], Any]],
        encode: Callable[[Any], bytes],
        reconnect: bool,
        max_line: int,
        poster: _Poster,
    ) -> None:
        self.name = f"http {requests.shown}"
        self._requests = requests
        self._new_decoder = new_decoder
        self._encode = encode
        self._reconnect = reconnect
        self._max_line = max_line
        self._poster = poster
        self._interrupts = Interrupts()
        self._outages = Outages(self.name, requests.shown)
        self._positions = itertools.count()

    def __repr__(self) -> str:
        """Show the URL without secrets."""
        return f"http({self._requests.shown!r})"

    @property
    def reconnects(self) -> int:
        """How often a lost server was reached again."""
        return self._outages.count + self._poster.outages.count

    # The source.

    def __aiter__(self) -> AsyncIterator[Batch]:
        """Give the lines of the response as they come, until it ends."""
        return read_on(self._response, self._interrupts, self._outages, reconnect=self._reconnect)

    async def _response(self) -> AsyncGenerator[list[Record | Bad], None]:
        lines, decode = Lines(self._max_line), self._new_decoder()
        response = await self._interrupts.wait(self._requests.open("GET", {}))
        try:
            yield []
            async with contextlib.aclosing(self._requests.chunks(response)) as chunks:
                while (chunk := await self._interrupts.wait(next_of(chunks))) is not None:
                    self._outages.over()
                    found = lines.feed(chunk)
                    for begin in range(0, len(found), _MANY):
                        yield self._records(decode, found[begin : begin + _MANY])
            yield self._records(decode, lines.last())
        finally:
            await response.aclose()

    def _records(
        self, decode: Callable[[bytes], Any], lines: Sequence[bytes | ValueError]
    ) -> list[Record | Bad]:
        shown = self._requests.shown
        records: list[Record | Bad] = []
        for line in lines:
            if line:
                add_line(records, decode, line, None, shown, shown, next(self._positions))
        return records

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: a response has no acknowledgements."""

    def stop(self) -> None:
        """Read no more."""
        self._interrupts.stop()

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Take results, and post those that fill a request.

        Raises:
            ConnectError: When the server refuses them, or does not answer.

        """
        lines = [self._encode(addressed(key, result).value) + b"\n" for key, result in results]
        if any(line.count(b"\n") > 1 for line in lines):
            raise ValueError("a result with a line end in it is no line")
        await self._poster.add(lines)

    async def flush(self) -> None:
        """Return once the server has answered to all results with success.

        Raises:
            ConnectError: As `write`.

        """
        await self._poster.flush()

    async def close(self) -> None:
        """Close the connections."""
        self.stop()
        await self._requests.close()


class _Poster:
    """Lines that are to be posted, in order, a request at a time."""

    def __init__(
        self, name: str, requests: Requests, batch: int, retries: int, content_type: str
    ) -> None:
        self.outages = Outages(name, requests.shown)
        self._requests = requests
        self._batch = batch
        self._retries = retries
        self._content_type = content_type
        self._lines: list[bytes] = []
        self._lock = asyncio.Lock()

    async def add(self, lines: Sequence[bytes]) -> None:
        """Add lines, and post what fills a request."""
        async with self._lock:
            self._lines.extend(lines)
            while len(self._lines) >= self._batch or self._first() < len(self._lines):
                await self._post()

    async def flush(self) -> None:
        """Post all lines."""
        async with self._lock:
            while self._lines:
                await self._post()

    def _first(self) -> int:
        """How many lines the next request has."""
        sizes = itertools.accumulate(map(len, self._lines[: self._batch]))
        return max(1, sum(size <= _REQUEST_BYTES for size in sizes))

    async def _post(self) -> None:
        count = self._first()
        body = b"".join(self._lines[:count])
        headers = {
            "Content-Type": self._content_type,
            # The same one in each attempt: a server that knows it can tell a repeated request.
            "Idempotency-Key": str(uuid.uuid4()),
        }
        for attempt in itertools.count(1):
            try:
                await self._requests.post(headers, body)
                break
            except Unreachable as error:
                if attempt > self._retries:
                    raise
                pause = min(getattr(error, "retry_after", 0.0), _LONGEST_PAUSE)
                await asyncio.sleep(max(pause, self.outages.wait(error)))
        self.outages.over()
        del self._lines[:count]


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "decode": str,
    "encode": str,
    "reconnect": boolean,
    "max_line": int,
    "read_timeout": float,
    "batch": int,
    "retries": int,
    "content_type": str,
    "user": str,
    "password_file": str,
    "token_file": str,
    "connect_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> Http:
    """Make the endpoint of `https://host/path?decode=text`.

    Parameters that are no settings are the server's.
    """
    address, values = parts_of(url, settings, _SETTINGS)
    return http(address, **values)
