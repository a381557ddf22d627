"""Kafka: topics as sources and sinks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload
from urllib.parse import SplitResult, unquote

from velo.connect._kafka.config import (
    PRODUCER,
    access_config,
    check_config,
    consumer_config,
)
from velo.connect._kafka.link import Link
from velo.connect._kafka.places import Name, Start, Until, check_start, check_until
from velo.connect._kafka.reader import Reader
from velo.connect._kafka.reading import Reading
from velo.connect._kafka.transactions import Transactions
from velo.connect._kafka.writer import Writer, Writing
from velo.connect.formats import Decode, Encode, decoder, encoder
from velo.connect.model import Assigned, Batch, Lost, Revoked
from velo.connect.settings import boolean, login_of, secret, settings_of

__all__ = ["Kafka", "kafka", "of_url"]

_KEEP_RECORDS = (
    "Keep records for longer than a checkpoint may be out of use (`retention.ms`). To go on "
    "without them, begin with a new checkpoint"
)


class Kafka:
    """A topic of Kafka, or several: a source, a sink, or both.

    Attributes:
        name: What it is called in messages and metrics, without secrets.
        servers: Its addresses.

    """

    def __init__(self, reading: Reading, writing: Writing | None, name: str, servers: str) -> None:
        self.name = name
        self.servers = servers
        self._reading = reading
        self._writing = writing
        self._source_link = Link(name, servers, reading.connect_timeout)
        self._sink_link = Link(name, servers, reading.connect_timeout)
        self._reader: Reader | None = None
        self._writer: Writer | None = None

    def __repr__(self) -> str:
        """Topics and servers."""
        return f"<{self.name} at {self.servers}>"

    def __del__(self) -> None:
        """End the thread of a source that was not closed."""
        if (reader := getattr(self, "_reader", None)) is not None:
            reader.abandon()

    # A source.

    async def __aiter__(self) -> AsyncIterator[Batch | Assigned | Revoked | Lost]:
        """Read, from a thread of its own.

        Raises:
            Unreachable: No broker answers.
            AuthenticationFailed: The broker refuses the user.
            PermissionDenied: The user may not read the topic, or not use the group.
            NoSuchTopic: A topic does not exist.
            PositionLost: The records behind a committed position were deleted.

        """
        if self._reader is not None:
            await self._reader.close()
        reader = self._reader = Reader(self._reading, self._source_link)
        try:
            while (item := await reader.take()) is not None:
                yield item
        finally:
            reader.stop()

    @overload
    async def commit(self, first: Mapping[Any, int], /) -> None: ...

    @overload
    async def commit(self, first: int, positions: Mapping[Any, Any], /) -> None: ...

    async def commit(self, first: Any, positions: Any = None, /) -> None:
        """Commit as a source, or as a sink.

        With positions: commit them for the group; without a group, do nothing. Positions of
        partitions that the source has lost are left out. With an epoch and positions: show the
        results of the transaction, and keep the epoch.

        Raises:
            Superseded: When another program has begun under the same name.
            ConnectError: When the brokers refuse.

        """
        if positions is not None:
            if not isinstance(self._writer, Transactions):
                raise ValueError(f"{self.name}: `commit` of an epoch wants `begin` first")
            await self._writer.commit(first)
        elif self._reader is not None and self._reading.group is not None and first:
            await self._reader.commit({name: at + 1 for name, at in first.items()})

    def seek(self, positions: Mapping[Any, int]) -> None:
        """Begin behind these positions, and read all partitions, without the help of the group.

        The group only stores what is committed, so that others see the lag.
        """
        self._reading = self._reading.behind(positions)
        self._source_link.remedy = _KEEP_RECORDS

    @property
    def shares(self) -> bool:
        """Whether a group gives it some of the partitions."""
        return self._reading.group is not None

    def share(self) -> None:
        """Read the partitions that the group gives, each of them from its call of `place` on.

        Raises:
            ValueError: When partitions do not move one by one.

        """
        if not self._reading.cooperative:
            raise ValueError(
                f"{self.name}: partitions that move with their states move one by one: leave "
                "`partition.assignment.strategy` out, or set `cooperative-sticky`"
            )
        self._reading = replace(self._reading, placed=True)
        self._source_link.remedy = _KEEP_RECORDS

    def place(self, partition: Name, position: int | None) -> None:
        """Read a partition behind a position; None: behind what is committed, or at `start`."""
        if self._reader is not None:
            self._reader.place(partition, position)

    async def topic_of(self, partition: Name) -> tuple[str, int]:
        """Give the topic of a partition, and how many partitions it has, as far as is known."""
        topic, number = partition
        count = 0 if self._reader is None else await self._reader.count(topic)
        return topic, max(count, number + 1)

    async def reassign(self, partition: Name) -> bool:
        """Ask the group whether it still gives a partition; if so, give it once more."""
        return self._reader is not None and await self._reader.reassign(partition)

    def pause(self, partitions: Iterable[Name]) -> None:
        """Hand on no more records of these. A partition that is assigned anew is not paused."""
        if self._reader is not None:
            self._reader.pause(partitions)

    def resume(self, partitions: Iterable[Name]) -> None:
        """Go on with these."""
        if self._reader is not None:
            self._reader.resume(partitions)

    def lag(self) -> Mapping[Name, int]:
        """Give the records of each partition behind the last one read, as of the last second."""
        return self._reader.lag if self._reader is not None else {}

    def stop(self) -> None:
        """Read no more."""
        if self._reader is not None:
            self._reader.stop()

    @property
    def reconnects(self) -> int:
        """How often all brokers were away, and came back."""
        return self._source_link.outages.count + self._sink_link.outages.count

    # A sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Queue results; the result None is written without a value, as a tombstone.

        Raises:
            TypeError: When a result cannot be encoded.
            ConnectError: As of iterating; NoSuchTopic when the topic does not exist.

        """
        if self._writer is None:
            self._writer = Writer(self._how_to_write(), self._sink_link)
        await self._writer.write(results)

    def _how_to_write(self) -> Writing:
        if self._writing is None:
            raise ValueError(f"{self.name}: name one topic to write to")
        return self._writing

    async def begin(self, name: str, epoch: int = 0) -> int:
        """Write in transactions, and give the last epoch that was committed under this name.

        A transaction that an earlier program of this name has left open is aborted, and that
        program can commit no more.

        Raises:
            PositionLost: When the brokers have forgotten the epoch of the checkpoint.
            ConnectError: As of iterating.

        """
        writer = self._writer = Transactions(self._how_to_write(), self._sink_link, name)
        return await writer.begin(epoch)

    def for_shard(self, _name: str) -> Kafka:
        """Give a sink with a producer, and with transactions, of its own."""
        return Kafka(self._reading, self._how_to_write(), self.name, self.servers)

    async def flush(self) -> None:
        """Wait until the brokers have all results (`acks=all`), also those that do not show yet.

        Raises:
            ConnectError: The first result that was not delivered, with its topic and the reason.

        """
        if self._writer is not None:
            await self._writer.flush()

    async def close(self) -> None:
        """Leave the group, and close all connections."""
        if (reader := self._reader) is not None:
            self._reader = None
            await reader.close()
        if (writer := self._writer) is not None:
            self._writer = None
            await writer.close()


def kafka(
    servers: str | Sequence[str],
    topic: str | Sequence[str],
    *,
    group: str | None = None,
    instance_id: str | None = None,
    start: Start = "committed",
    rewind: bool = False,
    until: Until = None,
    decode: Decode = "json",
    decode_key: Decode = "bytes",
    encode: Encode = "json",
    batch: int = 500,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    sasl: str = "PLAIN",
    tls: bool = False,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    connect_timeout: float = 10.0,
    refresh: float = 30.0,
    revoke_timeout: float = 30.0,
    close_timeout: float = 10.0,
    config: Mapping[str, Any] | None = None,
) -> Kafka:
    """Read records from topics of Kafka, or write results to one.

    A partition of the source is `(topic, number)`, and its positions are offsets. With `group`, the
    members of the group share the partitions, and handled positions are committed; without, this
    source reads all partitions and keeps no positions. A record without a value (a tombstone) is
    the event None.

    Results are written by an idempotent producer with `acks=all`, to the partition of their key, as
    Java's clients choose it.

    Args:
        servers: Addresses of some brokers, `host:port`; as a list or with commas.
        topic: A topic, several, or a pattern `^...` (a regular expression).
        group: The consumer group.
        instance_id: The name of this member, for static membership: a member that restarts within
            the session timeout gets its partitions back without a rebalance.
        start: Where a partition begins for which the group has committed nothing: "earliest",
            "latest", or seconds since the epoch. "committed" is "earliest". A mapping gives the
            last handled position of each partition, and goes before what was committed.
        rewind: Begin at `start` also where the group has committed positions, once for each
            partition.
        until: Where the source ends: None for never, "end" for the records that are there at the
            start, or seconds since the epoch (records from then on are left out).
        decode: How bytes become events: "json", "msgpack", "text", "bytes", `connect.csv(FIELDS)`
            or a function, which runs in the thread of the source.
        decode_key: How the key of a record is read; as `decode`.
        encode: How results become bytes; as `decode`.
        batch: The largest number of records that come at once.
        user: The user, for SASL.
        password: The password. Without one, the environment variable `KAFKA_PASSWORD` gives it.
        password_file: A file with the password.
        sasl: The mechanism: "PLAIN", "SCRAM-SHA-256" or "SCRAM-SHA-512".
        tls: Whether to encrypt.
        tls_ca: A file with the certificates to trust, instead of the system's. Implies `tls`.
        tls_cert: A file with the certificate of this client. Implies `tls`.
        tls_key: A file with the key of this client.
        connect_timeout: Seconds until a server that does not answer at first is an error.
        refresh: Seconds between looks for new topics and partitions.
        revoke_timeout: Seconds for handling and committing before a partition that moves to another
            member is given away.
        close_timeout: Seconds until `close` stops waiting for the brokers.
        config: More settings of librdkafka, such as `{"session.timeout.ms": 10000}`.

    Raises:
        ValueError: When a setting does not fit.
        ImportError: When confluent-kafka is not installed.

    """
    addresses = servers if isinstance(servers, str) else ",".join(servers)
    topics = tuple(topic.split(",") if isinstance(topic, str) else topic)
    if not addresses or not topics or not all(topics):
        raise ValueError("kafka: name a server and a topic")
    if "@" in addresses:
        # It may be a password's, so the message does not repeat it.
        raise ValueError("`servers` are host:port; pass user and password as settings")
    check_start(start)
    check_until(until)
    if rewind and start == "committed":
        raise ValueError("`rewind` wants a `start`: where to begin again")
    if batch < 1:
        raise ValueError(f"batch={batch}: it is at least 1")
    access = access_config(
        addresses, user, secret(password, password_file), sasl, tls, tls_ca, tls_cert, tls_key
    )
    check_config(config)
    common = access | {"topic.metadata.refresh.interval.ms": round(refresh * 1000)}
    own = dict(config or {})
    reading = Reading(
        topics, group, start, rewind, until, decoder(decode), decoder(decode_key), batch,
        connect_timeout, refresh, revoke_timeout, close_timeout,
        common | consumer_config(group, instance_id, until is not None, own) | own,
    )  # fmt: skip
    writing = None
    if len(topics) == 1 and not topics[0].startswith("^"):
        writing = Writing(
            topics[0], encoder(encode), callable(encode), connect_timeout, close_timeout,
            common | PRODUCER | own,
        )  # fmt: skip
    return Kafka(reading, writing, f"kafka {','.join(topics)}", addresses)


def _moment(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


_SETTINGS: dict[str, Any] = {
    "group": str, "instance_id": str, "start": _moment, "rewind": boolean, "until": _moment,
    "decode": str, "decode_key": str, "encode": str, "batch": int, "password_file": str,
    "sasl": str, "tls": boolean, "tls_ca": str, "tls_cert": str, "tls_key": str,
    "connect_timeout": float, "refresh": float, "revoke_timeout": float, "close_timeout": float,
}  # fmt: skip


def of_url(url: SplitResult, settings: dict[str, str]) -> Kafka:
    """Make the endpoint of `kafka://user:password@host:9092,host2:9092/TOPIC?group=...`.

    Commas join topics, and `config.NAME=VALUE` is a setting of librdkafka.

    Raises:
        ValueError: When the URL names no topic, or a setting that does not exist.

    """
    prefix = "config."
    config = {n.removeprefix(prefix): v for n, v in settings.items() if n.startswith(prefix)}
    own = {n: v for n, v in settings.items() if not n.startswith(prefix)}
    values = settings_of(own, _SETTINGS, url.scheme)
    servers = url.netloc.rpartition("@")[2]
    topic = unquote(url.path.strip("/"))
    if not topic:
        raise ValueError(f"{url.scheme}://{servers}: name the topic as the path of the URL")
    return kafka(servers, topic, config=config, **values, **dict[str, Any](login_of(url)))
