"""The endpoint of Redis Streams, and the function that makes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote

from velo.connect._redis.by_id import ById
from velo.connect._redis.entries import Bound, Layout, begin_id
from velo.connect._redis.in_group import InGroup
from velo.connect._redis.link import Link
from velo.connect._redis.writing import Writing
from velo.connect.errors import ConnectError
from velo.connect.formats import Decode, Encode, decoder, encoder
from velo.connect.model import Assigned, Batch, Partition, Position
from velo.connect.settings import boolean, cancelled, login_of, secret, settings_of

__all__ = ["Redis", "of_url", "redis"]

# How long a server is asked to wait for the next entry, at the most: a source that is stopped ends
# within this time.
_WAIT = 0.5


class Redis:
    """A source and a sink of Redis Streams; see `redis`.

    Attributes:
        name: `redis` and the names of the streams.
        reconnects: How often the connection was made again.
        redelivered: How many entries had been delivered before.

    """

    def __init__(
        self,
        link: Link,
        streams: Sequence[str],
        reader: ById | InGroup,
        writer: Writing,
        layout: Layout,
        *,
        name: str,
        until: Any,
        tend_every: float,
    ) -> None:
        self.name = name
        self._link = link
        self._streams = list(streams)
        self._reader = reader
        self._writer = writer
        self._layout = layout
        self._until = until
        self._tend_every = tend_every
        self._paused: set[Partition] = set()
        self._changed = asyncio.Event()
        self._stopping = False
        self._tending: asyncio.Task[None] | None = None
        self._lag: dict[Partition, int] = {}

    def __repr__(self) -> str:
        """Server and streams."""
        return f"<{self.name} at {self._link.address}>"

    @property
    def reconnects(self) -> int:
        """How often the connection was made again."""
        return self._link.outages.count

    @property
    def redelivered(self) -> int:
        """How many entries had been delivered before."""
        return self._reader.redelivered

    stable = True
    """The ids of entries are positions, also where an entry is delivered again."""

    @property
    def seek(self) -> Callable[[Mapping[Partition, Position]], None]:
        """Begin behind these positions. Not there in a group, which keeps positions itself."""
        if isinstance(self._reader, InGroup):
            raise AttributeError("a group keeps the positions itself")
        return self._reader.seek

    async def __aiter__(self) -> AsyncIterator[Batch | Assigned]:
        """Give the entries in batches."""
        bound = Bound(self._until)
        await self._reader.begin(bound)
        yield Assigned(tuple(self._streams))
        self._tending = asyncio.create_task(self._tend(), name=f"velo {self.name}")
        self._tending.add_done_callback(lambda _: self._changed.set())
        try:
            while not self._stopping and (left := bound.left(self._streams)):
                if self._tending.done():
                    self._tending.result()
                self._changed.clear()
                streams = [stream for stream in left if stream not in self._paused]
                if not streams:
                    await self._changed.wait()
                    continue
                entries = await self._reader.read(streams, 0 if self._until == "end" else _WAIT)
                if not entries:
                    bound.caught_up(streams)
                yield [self._layout.record(entry) for entry in entries]
        finally:
            await self._end_tending()

    async def _tend(self) -> None:
        """Keep what takes long, and ask for the lag, until the iteration ends."""
        # redis-py on Python 3.11 may lose a cancellation that comes while it opens a connection.
        while self._tending is not None:
            self._lag.update(await self._reader.tend())
            if self._tending is not None:
                await asyncio.sleep(self._tend_every)

    async def _end_tending(self) -> None:
        task, self._tending = self._tending, None
        if task is not None:
            await cancelled(task)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Read no more of these streams."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Read these streams again."""
        self._paused.difference_update(partitions)
        self._changed.set()

    def stop(self) -> None:
        """Read no more; the iteration ends within half a second."""
        self._stopping = True
        self._changed.set()

    def lag(self) -> dict[Partition, int]:
        """How many entries of each stream were not read when the server was last asked."""
        return dict(self._lag)

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Acknowledge all entries of a stream that came up to the position.

        Without a group this does nothing: give the position of the last entry that was handled as
        `start=` of the next source.
        """
        await self._reader.commit(positions)

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Take results; waits while a batch of them is sent.

        Raises:
            TypeError: When a result cannot be encoded; none of these results is taken then.
            ConnectError: When the server refuses an earlier one.

        """
        await self._writer.write(results)

    async def flush(self) -> None:
        """Return once the server has answered for all results.

        Raises:
            ConnectError: When it refuses one, or is not there for `write_timeout` seconds.

        """
        await self._writer.flush()

    async def close(self) -> None:
        """Leave the group where the consumer's name was made for this run; close connections."""
        await self._end_tending()
        with contextlib.suppress(ConnectError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._reader.end()
        await self._link.close()


def redis(
    server: str,
    stream: str | Sequence[str],
    *,
    group: str | None = None,
    consumer: str | None = None,
    claim_after: float = 60.0,
    start: str | float | Mapping[str, str | float] = "committed",
    rewind: bool = False,
    until: str | float | None = None,
    decode: Decode = "json",
    decode_key: Decode = "bytes",
    encode: Encode = "json",
    field: str | None = "value",
    key_field: str = "key",
    maxlen: int | None = None,
    batch: int = 500,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    tls: bool = False,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    db: int | None = None,
    connect_timeout: float = 10.0,
    reply_timeout: float = 5.0,
    write_timeout: float = 60.0,
) -> Redis:
    """Read entries of Redis streams, or add results to one.

    Args:
        server: The address: `redis://host:6379`, `rediss://` for TLS, `unix:///path`.
        stream: The stream, or several.
        group: The group to read in. Without it the streams are read by id, and `commit` keeps
            nothing.
        consumer: The name in the group. It receives again what it did not acknowledge, at once
            after a restart. None: a new name for each process, whose entries others take over.
        claim_after: After how many seconds to take over what a consumer received and neither
            acknowledged nor keeps. A consumer of velo keeps what it works on, so that it may take
            longer than this.
        start: Where to begin: "earliest", "latest", seconds since the epoch, or the id of the last
            entry that was handled; for each stream its own as a dict. A group that exists goes on
            where it is. "committed" begins a new group at "earliest".
        rewind: Begin at `start` also in a group that exists. This sets back the whole group.
        until: Where to end: None for never, "end" for what is there at the start, or seconds since
            the epoch (entries from then on are left out).
        decode: How bytes become an event.
        decode_key: How the key of an entry is read; as `decode`.
        encode: How a result becomes bytes.
        field: The field of the value. None: the event is a dict of all fields as text, and a
            result is a dict of fields.
        key_field: The field of the key.
        maxlen: About how many entries to keep in a stream that results are added to.
        batch: How many entries of a stream to read at once, and results to send at once.
        user: The user; None for `default`.
        password: The password. Without one, the environment variable `REDISCLI_AUTH` gives it.
        password_file: A file with the password.
        tls: Whether to encrypt; as `rediss://`.
        tls_ca: A file with the certificates to trust, instead of the system's. Implies `tls`.
        tls_cert: A file with the certificate of this client. Implies `tls`.
        tls_key: A file with the key of this client.
        db: The number of the database.
        connect_timeout: The seconds that the first connection may take.
        reply_timeout: After how many seconds without a reply a connection is given up.
        write_timeout: After how many seconds of an outage `flush` and `commit` give up.

    Raises:
        ValueError: When a setting is none of those that exist.
        ImportError: When the package `redis` is not installed.

    """
    streams = [stream] if isinstance(stream, str) else list(stream)
    if not streams or not all(streams):
        raise ValueError("name the stream: `connect.redis(server, stream)`")
    if claim_after <= 0:
        raise ValueError("`claim_after` is a number of seconds above 0")
    if batch < 1:
        raise ValueError("`batch` is at least 1")
    Bound(until)
    for each in streams:
        begin_id(start, each)
    name = f"redis {', '.join(streams)}"
    link = Link(
        server,
        name,
        tls=tls or tls_ca is not None or tls_cert is not None,
        connect_timeout=connect_timeout,
        reply_timeout=reply_timeout,
        username=user,
        password=secret(password, password_file),
        db=db,
        ssl_ca_certs=tls_ca,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    reader: ById | InGroup
    if group is None:
        reader = ById(link, streams, start, batch)
    else:
        reader = InGroup(
            link,
            streams,
            start,
            batch,
            group=group,
            rewind=rewind,
            consumer=consumer or f"velo-{socket.gethostname()}-{os.urandom(6).hex()}",
            lasting=consumer is not None,
            claim_after=claim_after,
            limit=write_timeout,
        )
    layout = Layout(field, key_field, decoder(decode), decoder(decode_key), encoder(encode))
    writer = Writing(link, streams, layout, batch=batch, maxlen=maxlen, limit=write_timeout)
    every = min(5.0, claim_after / 3)
    return Redis(link, streams, reader, writer, layout, name=name, until=until, tend_every=every)


def _start(text: str) -> str | float:
    try:
        return float(text) if "-" not in text else text
    except ValueError:
        return text


def _field(text: str) -> str | None:
    return text or None


_SETTINGS: dict[str, Any] = {
    "group": str, "consumer": str, "claim_after": float, "start": _start, "rewind": boolean,
    "until": _start, "decode": str, "decode_key": str, "encode": str, "field": _field,
    "key_field": str, "maxlen": int, "batch": int, "password_file": str, "tls": boolean,
    "tls_ca": str, "tls_cert": str, "tls_key": str, "db": int,
    "connect_timeout": float, "reply_timeout": float, "write_timeout": float,
}  # fmt: skip


def of_url(url: SplitResult, settings: dict[str, str]) -> Redis:
    """Make the endpoint of `redis://user:password@host:6379/STREAM?group=...`; commas join streams.

    Raises:
        ValueError: When the URL names no stream, or a setting that does not exist.

    """
    values = settings_of(settings, _SETTINGS, url.scheme)
    streams = [unquote(name) for name in url.path.strip("/").split(",") if name]
    if not streams:
        raise ValueError(f"{url.scheme}://{url.hostname}: name the stream as the path of the URL")
    address = url.netloc.rpartition("@")[2]
    values |= login_of(url)
    return redis(f"{url.scheme}://{address}", streams, **values)
