"""The endpoint of NATS, and the function that makes it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote

from nats.errors import Error as NatsError

from velo.connect._nats.bounds import check_start, check_until
from velo.connect._nats.core import Core
from velo.connect._nats.durable import Durable
from velo.connect._nats.jetstream import JetStream
from velo.connect._nats.link import Link
from velo.connect._nats.messages import Layout
from velo.connect._nats.ordered import Ordered
from velo.connect._nats.writing import Acknowledged, Plain
from velo.connect.errors import ConnectError
from velo.connect.formats import Decode, Encode, decoder, encoder
from velo.connect.model import Assigned, Batch, Partition, Position
from velo.connect.settings import boolean, cancelled, login_of, secret, settings_of

__all__ = ["Nats", "nats", "of_url"]

# How long to wait for the next message before the iteration gives an empty batch.
_WAIT = 0.5


class Nats:
    """A source and a sink of NATS; see `nats`.

    Attributes:
        name: `nats` and the names of the subjects.

    """

    def __init__(
        self,
        link: Link,
        reader: JetStream | Core,
        writer: Acknowledged | Plain,
        *,
        name: str,
        tend_every: float,
    ) -> None:
        self.name = name
        self._link = link
        self._reader = reader
        self._writer = writer
        self._tend_every = tend_every
        self._paused: set[Partition] = set()
        self._stopping = False
        self._tending: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Server and subjects."""
        return f"<{self.name} at {self._link.address}>"

    @property
    def reconnects(self) -> int:
        """How often the connection was made again."""
        return self._link.outages.count

    @property
    def redelivered(self) -> int:
        """How many messages had been delivered before."""
        return self._reader.redelivered

    @property
    def dropped(self) -> int:
        """How many messages of core NATS were dropped, because too many waited."""
        return self._reader.dropped if isinstance(self._reader, Core) else 0

    @property
    def seek(self) -> Callable[[Mapping[Partition, Position]], None]:
        """Begin behind these positions. There for an ordered consumer alone."""
        if isinstance(self._reader, Core) or not self._reader.seeks:
            raise AttributeError("an ordered consumer alone goes back to a position")
        return self._reader.seek

    @property
    def stable(self) -> bool:
        """Whether a message that is delivered again has the position that it had."""
        return isinstance(self._reader, JetStream)

    async def __aiter__(self) -> AsyncIterator[Batch | Assigned]:
        """Give the messages in batches."""
        partitions = await self._reader.begin()
        yield Assigned(tuple(partitions))
        self._tending = asyncio.create_task(self._tend(), name=f"velo {self.name}")
        self._tending.add_done_callback(lambda _: self._link.wake.set())
        try:
            while not self._stopping and (left := await self._reader.left()):
                if self._tending.done():
                    self._tending.result()
                streams = [stream for stream in left if stream not in self._paused]
                if streams:
                    yield await self._reader.read(streams, _WAIT)
                else:
                    self._link.wake.clear()
                    self._link.check()
                    await self._link.wake.wait()
        finally:
            await self._end_tending()

    async def _tend(self) -> None:
        """Keep what takes long, and ask for the lag, until the iteration ends."""
        while self._tending is not None:
            await asyncio.sleep(self._tend_every)
            await self._reader.tend()

    async def _end_tending(self) -> None:
        task, self._tending = self._tending, None
        if task is not None:
            await cancelled(task)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Read no more of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Read these again."""
        self._paused.difference_update(partitions)
        self._link.wake.set()

    def stop(self) -> None:
        """Read no more; the iteration ends soon."""
        self._stopping = True
        self._link.wake.set()

    def lag(self) -> dict[Partition, int]:
        """How many messages of each partition were not read."""
        return self._reader.lag()

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Acknowledge all messages of a stream that came up to the position.

        Only a durable consumer keeps that: without one, give the position of the last message that
        was handled as `start=` of the next source.
        """
        await self._reader.commit(positions)

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Publish results; waits while `in_flight` of them are not acknowledged.

        Raises:
            TypeError: When a result cannot be encoded; none of these results is published then.
            ValueError: When its subject, key or headers do not fit; as above.
            ConnectError: When the server refuses a result.

        """
        await self._writer.write(results)

    async def flush(self) -> None:
        """Return once the server has acknowledged all results.

        Raises:
            NoSuchTopic: When no stream has the subject of a result.
            ConnectError: When the server refuses one, or is not there for `write_timeout` seconds.

        """
        await self._writer.flush()

    async def close(self) -> None:
        """Give back what was not acknowledged, and close the connection."""
        await self._end_tending()
        with contextlib.suppress(ConnectError, TimeoutError, NatsError):
            async with asyncio.timeout(2.0):
                await self._reader.end()
        self._writer.close()
        await self._link.close()


def nats(
    server: str | Sequence[str],
    subject: str | Sequence[str],
    *,
    stream: str | Sequence[str] = (),
    durable: str | None = None,
    jetstream: bool = True,
    queue: str | None = None,
    start: str | float | Mapping[str, int] = "committed",
    rewind: bool = False,
    until: str | float | None = None,
    ack_wait: float = 30.0,
    max_ack_pending: int = 50_000,
    decode: Decode = "json",
    decode_key: Decode = "text",
    encode: Encode = "json",
    key_header: str | None = "Key",
    message_id: Callable[[Any], str] | None = None,
    batch: int = 500,
    buffer: int = 65_536,
    in_flight: int = 1_000,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    token: str | None = None,
    credentials: str | None = None,
    tls: bool | ssl.SSLContext = False,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    keepalive: float = 10.0,
    connect_timeout: float = 10.0,
    write_timeout: float = 60.0,
) -> Nats:
    """Read messages of NATS, or publish results.

    Args:
        server: The address, or those of several servers of a cluster: `nats://host:4222`, `tls://`
            for TLS.
        subject: The subject, or several, with the wildcards `*` and `>`.
        stream: The stream, or several. By default those that have the subjects.
        durable: The name of the consumer that keeps what is acknowledged; programs with the same
            name share its messages. Without it an ordered consumer reads by sequence, and `commit`
            keeps nothing.
        jetstream: False: core NATS, which keeps and acknowledges nothing.
        queue: The queue group of core NATS, whose members share the messages.
        start: Where to begin: "earliest", "latest", seconds since the epoch, or the sequence of the
            last message that was handled in each stream, as a dict. A durable consumer that exists
            goes on where it is. "committed" begins a new one at "earliest".
        rewind: Begin at `start` also with a durable consumer that exists: it is made anew.
        until: Where to end: None for never, "end" for what is there at the start, or seconds since
            the epoch (messages from then on are left out).
        ack_wait: After how many seconds the server delivers a message again that is neither
            acknowledged nor kept. A source of velo keeps what it works on, so that it may take
            longer than this.
        max_ack_pending: How many messages of a durable consumer may be unacknowledged.
        decode: How bytes become an event.
        decode_key: How the key's header is read; as `decode`.
        encode: How a result becomes bytes.
        key_header: The header of the key; a message without it has its subject as key. None: no
            header.
        message_id: The id of a result, by which JetStream drops duplicates: a function of the
            result. Without it an id of this run guards against doubles after an outage.
        batch: How many messages to ask for at once.
        buffer: How many messages of core NATS may wait; further ones are dropped and counted.
        in_flight: How many results may be unacknowledged.
        user: The user. Without login, the variables `NATS_USER`, `NATS_PASSWORD`, `NATS_TOKEN` and
            `NATS_CREDS` give it.
        password: The password.
        password_file: A file with the password.
        token: The token, instead of user and password.
        credentials: A file with a JWT and a seed (`.creds`), instead of user and password.
        tls: Whether to encrypt, or how; as `tls://`.
        tls_ca: A file with the certificates to trust, instead of the system's. Implies `tls`.
        tls_cert: A file with the certificate of this client. Implies `tls`.
        tls_key: A file with the key of this client.
        keepalive: After how many seconds a silent connection is checked; after three it is lost.
        connect_timeout: The seconds that the first connection may take.
        write_timeout: After how many seconds of an outage `flush` and `commit` give up.

    Raises:
        ValueError: When a setting is none of those that exist.
        ImportError: When the package `nats-py` is not installed.

    """
    subjects = [subject] if isinstance(subject, str) else list(subject)
    if not subjects or not all(subjects):
        raise ValueError("name the subject: `connect.nats(server, subject)`")
    check_start(start)
    check_until(until)
    if min(batch, in_flight, buffer, max_ack_pending) < 1 or ack_wait <= 0:
        raise ValueError(
            "`batch`, `in_flight`, `buffer`, `max_ack_pending` and `ack_wait` are above 0"
        )
    if not jetstream and (durable or stream or start not in ("committed", "latest")):
        raise ValueError(
            "core NATS keeps no messages: `durable`, `stream` and `start` need JetStream"
        )
    if jetstream and queue:
        raise ValueError("`queue` is for core NATS: programs share a consumer by `durable`")
    name = f"nats {', '.join(subjects)}"
    link = Link(
        [server] if isinstance(server, str) else server,
        name,
        user=user,
        password=secret(password, password_file),
        token=token,
        credentials=credentials,
        tls=_context(tls, tls_ca, tls_cert, tls_key),
        connect_timeout=connect_timeout,
        keepalive=keepalive,
    )
    layout = Layout(key_header, decoder(decode), decoder(decode_key), encoder(encode), message_id)
    if not jetstream:
        core = Core(
            link, name, subjects, layout, queue=queue, until=until, batch=batch, buffer=buffer
        )
        plain = Plain(link, name, subjects, layout, limit=write_timeout)
        return Nats(link, core, plain, name=name, tend_every=5.0)

    def consumer(stream: str, subjects: Sequence[str]) -> Durable | Ordered:
        if durable is None:
            return Ordered(link, name, stream, subjects, start)
        return Durable(
            link,
            name,
            stream,
            subjects,
            start,
            durable=durable,
            rewind=rewind,
            ack_wait=ack_wait,
            max_ack_pending=max_ack_pending,
            limit=write_timeout,
        )

    reader = JetStream(
        link,
        subjects,
        [stream] if isinstance(stream, str) else list(stream),
        consumer,
        layout,
        until=until,
        batch=batch,
        connect_timeout=connect_timeout,
        seeks=durable is None,
    )
    writer = Acknowledged(link, name, subjects, layout, limit=write_timeout, in_flight=in_flight)
    return Nats(link, reader, writer, name=name, tend_every=min(5.0, ack_wait / 4))


def _context(
    tls: bool | ssl.SSLContext, ca: str | None, cert: str | None, key: str | None
) -> ssl.SSLContext | None:
    if isinstance(tls, ssl.SSLContext):
        return tls
    if not tls and ca is None and cert is None:
        return None
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def _place(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


_SETTINGS: dict[str, Any] = {
    "group": str,
    "stream": lambda text: text.split(","), "durable": str, "jetstream": boolean, "queue": str,
    "start": _place, "rewind": boolean, "until": _place, "ack_wait": float,
    "max_ack_pending": int, "decode": str, "decode_key": str, "encode": str,
    "key_header": lambda text: text or None, "batch": int, "buffer": int, "in_flight": int,
    "password_file": str, "credentials": str, "tls": boolean, "tls_ca": str, "tls_cert": str,
    "tls_key": str, "keepalive": float, "connect_timeout": float, "write_timeout": float,
}  # fmt: skip


def of_url(url: SplitResult, settings: dict[str, str]) -> Nats:
    """Make the endpoint of `nats://user:password@host:4222/SUBJECT?durable=...`.

    Commas join several subjects. `group` stands for `durable`, or for `queue` of core NATS, as in
    `velo run --group`.

    Raises:
        ValueError: When the URL names no subject, or a setting that does not exist.

    """
    values = settings_of(settings, _SETTINGS, url.scheme)
    if (group := values.pop("group", None)) is not None:
        values.setdefault("durable" if values.get("jetstream", True) else "queue", group)
    subjects = [unquote(name) for name in url.path.strip("/").split(",") if name]
    if not subjects:
        raise ValueError(f"{url.scheme}://{url.hostname}: name the subject as the URL's path")
    login = login_of(url)
    if "password" in login or not login:
        values |= login
    elif "password_file" in values:
        values["user"] = login["user"]
    else:
        values["token"] = login["user"]
    address = url.netloc.rpartition("@")[2]
    return nats(f"{url.scheme}://{address}", subjects, **values)
