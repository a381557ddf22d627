"""Server-sent events: a source that goes on behind the last event when it connects again."""

from __future__ import annotations

import contextlib
import itertools
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import SplitResult

from velo.connect.errors import ConnectError, missing
from velo.connect.formats import Decode, decoder
from velo.connect.lines import Lines
from velo.connect.model import Bad, Batch, Partition, Position, Record
from velo.connect.settings import Outages, boolean, decoded
from velo.connect.web import (
    Interrupted,
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
    raise missing("`connect.sse`", "http") from error

__all__ = ["Sse", "of_url", "sse"]

_NO_CONTENT = 204
# After the end of a response, the seconds until the next request, unless the server says
# otherwise.
_PAUSE = 1.0


def sse(
    url: str,
    *,
    start: str | tuple[str, int] | None = None,
    decode: Decode = "json",
    reconnect: bool = True,
    max_size: int = 1024 * 1024,
    read_timeout: float | None = None,
    headers: Mapping[str, str] | None = None,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    token: str | None = None,
    token_file: str | None = None,
    tls: ssl.SSLContext | None = None,
    connect_timeout: float = 10.0,
) -> Sse:
    """Read the server-sent events of a URL.

    Args:
        url: The address: `https://host/path`; `sses` and `sse` stand for `https` and `http`.
        start: The position of a record, behind which to begin: the id of its event, or `(id, n)`
            for the n-th event without an id of its own behind it. The server gets the id as
            `Last-Event-ID`.
        decode: The format of the data: "json", "text", "bytes", `connect.csv(FIELDS)`, or a
            function of bytes.
        reconnect: Request again behind the last event when the response ends or breaks off.
            Otherwise the end of the response is the end of the source.
        max_size: Events with more bytes than that are no events.
        read_timeout: The seconds that the server may be silent behind the head of its response.
            None: for ever.
        headers: Headers of the request.
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
    if url.startswith(("sse:", "sses:")):
        url = "http" + url[3:]
    url, shown, url_user, url_password = address_of(url, ("http", "https"))
    if max_size < 1:
        raise ValueError("`max_size` is at least 1")
    login = login_headers(
        headers,
        url_user if user is None else user,
        url_password if password is None and password_file is None else password,
        password_file,
        token,
        token_file,
    )
    requests = Requests(url, shown, login, tls, connect_timeout, read_timeout)
    return Sse(requests, decoder(decode), start or "", reconnect, max_size)


class Sse:
    """A source; see `sse`.

    Attributes:
        name: What it reads.
        reconnects: How often a lost server was reached again.

    """

    def __init__(
        self,
        requests: Requests,
        decode: Callable[[bytes], Any],
        start: str | tuple[str, int],
        reconnect: bool,
        max_size: int,
    ) -> None:
        self.name = f"sse {requests.shown}"
        self._requests = requests
        self._decode = decode
        self._last: tuple[str, int] = _place(start)
        # Events without any id have positions that no other run gives.
        self._numbers = itertools.count(time.time_ns())
        self._reconnect = reconnect
        self._max_size = max_size
        self._pause = _PAUSE
        self._interrupts = Interrupts()
        self._outages = Outages(self.name, requests.shown)

    def __repr__(self) -> str:
        """Show the URL without secrets."""
        return f"sse({self._requests.shown!r})"

    @property
    def reconnects(self) -> int:
        """How often a lost server was reached again."""
        return self._outages.count

    def __aiter__(self) -> AsyncIterator[Batch]:
        """Give the events as they come."""
        pause = (lambda: self._pause) if self._reconnect else None
        return read_on(
            self._response,
            self._interrupts,
            self._outages,
            reconnect=self._reconnect,
            pause=pause,
        )

    async def _response(self) -> AsyncGenerator[list[Record | Bad], None]:
        headers: dict[str, Any] = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last[0]:
            headers["Last-Event-ID"] = self._last[0].encode()
        response = await self._interrupts.wait(self._requests.open("GET", headers))
        try:
            if response.status_code == _NO_CONTENT:
                raise _NoContent
            kind = response.headers.get("content-type", "")
            if kind.partition(";")[0].strip().lower() != "text/event-stream":
                raise ConnectError(
                    f"{self._requests.shown} gives {kind or 'a body without a type'}, and no "
                    "text/event-stream"
                )
            yield []
            parser = _Parser(self._max_size, *self._last)
            async with contextlib.aclosing(self._requests.chunks(response)) as chunks:
                while (chunk := await self._interrupts.wait(next_of(chunks))) is not None:
                    self._outages.over()
                    records = [self._record(*event) for event in parser.feed(chunk)]
                    if parser.retry is not None:
                        self._pause = parser.retry
                    yield records
                    # What was not given yet is asked for again.
                    self._last = parser.last
        finally:
            await response.aclose()

    def _record(self, name: str, data: bytes | ValueError, place: tuple[str, int]) -> Record | Bad:
        event_id, behind = place
        position: Position = place if behind else event_id
        if not event_id:
            position = ("", next(self._numbers))
        origin = (None, name, self._requests.shown, position)
        if isinstance(data, ValueError):
            return Bad(Record(b"", *origin), data)
        return decoded(self._decode, data, *origin)

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Begin behind a position, as `start` does; without ids, with what the server sends."""
        if self._requests.shown in positions:
            self._last = _place(positions[self._requests.shown])

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: the protocol has no acknowledgements."""

    def stop(self) -> None:
        """Read no more."""
        self._interrupts.stop()

    async def close(self) -> None:
        """Close the connection."""
        self.stop()
        await self._requests.close()


class _NoContent(Interrupted):
    """The server says that there is nothing more, and that no client shall ask again."""


def _place(position: str | tuple[str, int]) -> tuple[str, int]:
    """Give the id of a position, and how many events without one of their own follow it."""
    event_id, behind = position if isinstance(position, tuple) else (position, 0)
    return event_id, behind if event_id else 0


class _Parser:
    """Makes events of the bytes of a response.

    Args:
        max_size: Larger events are no events.
        last_id: The id behind which the response begins.
        behind: How many events behind that, without an id of their own, are known already. They
            are left out.

    Attributes:
        last: The last id, and how many events without one have followed it.
        retry: The seconds that a client waits before it connects again, if the server has said so.

    """

    def __init__(self, max_size: int, last_id: str = "", behind: int = 0) -> None:
        self.last = (last_id, behind if last_id else 0)
        self._behind = 0
        self.retry: float | None = None
        self._max_size = max_size
        self._lines = Lines(max_size + len("data: "))
        self._after_return = False
        self._first = True
        self._clear()

    def _clear(self) -> None:
        self._data: list[bytes] = []
        self._size = 0
        self._error: ValueError | None = None
        self._name = ""
        self._id: str | None = None

    def feed(self, data: bytes) -> list[tuple[str, bytes | ValueError, tuple[str, int]]]:
        """Give the events that are complete: name, data, and the id with what is behind it."""
        if self._after_return:
            data = data.removeprefix(b"\n")
        self._after_return = data.endswith(b"\r")
        events = []
        for line in self._lines.feed(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")):
            if line == b"":
                if self._id is not None:
                    self.last, self._behind = (self._id, 0), 0
                if self._data or self._error:
                    value = b"\n".join(self._data) if self._error is None else self._error
                    if self._is_new():
                        events.append((self._name or "message", value, self.last))
                self._clear()
            elif isinstance(line, ValueError):
                self._error = line
            else:
                self._field(line.removeprefix(b"\xef\xbb\xbf") if self._first else line)
            self._first = False
        return events

    def _is_new(self) -> bool:
        """Count an event without an id of its own, and say whether it was not given before."""
        if self._id is None:
            self._behind += 1
            if self._behind <= self.last[1]:
                return False
            self.last = (self.last[0], self._behind)
        return True

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            if self._size > self._max_size + 1:
                self._error = ValueError(f"an event has more than {self._max_size:,} bytes")
                self._data.clear()
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        elif field == b"retry" and value.isdigit():
            self.retry = int(value) / 1000


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "start": str,
    "decode": str,
    "reconnect": boolean,
    "max_size": int,
    "read_timeout": float,
    "user": str,
    "password_file": str,
    "token_file": str,
    "connect_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> Sse:
    """Make the endpoint of `sses://host/path?decode=text`.

    Parameters that are no settings are the server's.
    """
    address, values = parts_of(url, settings, _SETTINGS)
    return sse(address, **values)
