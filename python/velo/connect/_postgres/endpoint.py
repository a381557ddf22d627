"""The endpoint: an outbox as a source, tables as a sink."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload
from urllib.parse import SplitResult, unquote

from velo.connect._postgres.link import (
    LOST,
    Connection,
    Server,
    bounded,
    columns_of,
    cut,
    let_go,
    psycopg,
    sql,
    told,
)
from velo.connect._postgres.outbox import Outbox, Window
from velo.connect._postgres.rows import Rows
from velo.connect.errors import Unreachable
from velo.connect.formats import Decode, decoder
from velo.connect.model import Bad, Batch, Headers, Partition, Position, Record, addressed
from velo.connect.settings import Outages, boolean, decoded, log, login_of, secret, settings_of
from velo.connect.urls import host_of

__all__ = ["Postgres", "of_url", "postgres"]

# The seconds after which a message names the transaction that holds up committed rows.
_HELD_UP_SECONDS = 30.0


def postgres(
    server: str,
    database: str,
    table: str,
    *,
    group: str = "velo",
    start: Literal["committed", "earliest", "latest"] | float = "committed",
    until: Literal["end"] | None = None,
    delete: bool = False,
    create: bool = False,
    poll: float = 1.0,
    notify: str | None = None,
    upsert: bool | Sequence[str] = False,
    key: str | None = None,
    decode: Decode = "json",
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    tls: bool | str = False,
    connect_timeout: float = 10.0,
    request_timeout: float = 30.0,
) -> Postgres:
    """Read an outbox table of a PostgreSQL database, or write rows to tables.

    Args:
        server: The server, as `host` or `host:port`.
        database: The database.
        table: The table, as `table` or `schema.table`. A source reads its columns `id`, `payload`
            and `xid`, and where they exist `key`, `headers` and `created`.
        group: The name under which the position is stored. One program of a group reads; others
            wait until it ends.
        start: "committed" begins behind the stored position, or at the first row; "earliest" and
            "latest" drop it. A time in seconds since the epoch compares with `created`.
        until: "end" finishes when the rows of all transactions that began before it are read.
        delete: Delete rows that are handled, instead of storing a position.
        create: Create the outbox where there is none, with a payload of `bytea`.
        poll: The seconds between two looks for new rows.
        notify: A channel of `NOTIFY`, each message of which causes a look.
        upsert: Replace a row with the same values in these columns, which have a unique index;
            True stands for the primary key. Otherwise each result is a new row.
        key: The column that takes the key of a result, where the result has no such entry.
        decode: The format of payloads: "json", "msgpack", "text", "bytes", `connect.csv(FIELDS)`,
            or a function of bytes.
        user: The user name.
        password: The password; or `password_file`, a file that holds it.
        password_file: See `password`.
        tls: True checks the server's certificate by the system's authorities, a path by that file.
        connect_timeout: The seconds that connecting may take.
        request_timeout: The seconds after which a silent server counts as lost.

    Raises:
        ValueError: When a setting is out of range.
        ImportError: When psycopg is not installed.

    """
    host, port = host_of(server, 5432)
    if not database or not all(table.split(".")):
        raise ValueError("name a `database` and a `table`")
    if start not in ("committed", "earliest", "latest") and not isinstance(start, int | float):
        raise ValueError(f'start={start!r}: "committed", "earliest", "latest" or a time')
    if until not in (None, "end"):
        raise ValueError(f'until={until!r}: "end", or leave it out')
    if poll <= 0 or connect_timeout <= 0 or request_timeout <= 0:
        raise ValueError("`poll`, `connect_timeout` and `request_timeout` are above 0")
    where = Server(
        host,
        port,
        database,
        user,
        secret(password, password_file),
        tls,
        connect_timeout,
        request_timeout,
    )
    at = start if isinstance(start, str) else float(start)
    return Postgres(
        where, table, group, at, until == "end", delete, create, poll, notify, upsert, key, decode
    )


class Postgres:
    """A source and a sink; see `postgres`.

    Attributes:
        name: What it reads or writes.

    """

    def __init__(
        self,
        server: Server,
        table: str,
        group: str,
        start: float | str,
        until_end: bool,
        delete: bool,
        create: bool,
        poll: float,
        notify: str | None,
        upsert: bool | Sequence[str],
        key: str | None,
        decode: Decode,
    ) -> None:
        self.name = f"postgres {table}"
        self._server = server
        self._table = table
        self._outbox = Outbox(self.name, str(server), table, f"{group} {table}", start)
        self._fresh = start != "committed"
        self._checkpointed = False
        self._until_end = until_end
        self._delete = delete
        self._create = create
        self._poll = poll
        self._notify = notify
        self._decode = decoder(decode)
        self._new_rows = functools.partial(Rows, self.name, server, table, upsert, key)
        self._rows = self._new_rows()
        # Rows are flushed while others are written: one of the two uses the connection at a time.
        self._writing = asyncio.Lock()
        self._outages = Outages(self.name, str(server))
        # Reading and committing do not wait for each other: each has its connection.
        self._reader: Connection | None = None
        self._committer: Connection | None = None
        self._end: int | None = None
        # With `delete`: the rows that were given and are not handled.
        self._given: deque[Window] = deque()
        self._changed = asyncio.Event()
        self._stopped = False
        self._paused = False
        self._since = (0, 0.0)
        self._said = False

    def __repr__(self) -> str:
        """Table and server."""
        return f"postgres({str(self._server)!r}, {self._table!r})"

    @property
    def reconnects(self) -> int:
        """How often a lost connection was made again."""
        return self._outages.count + self._rows.outages.count

    # The source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Read the outbox, in an order that skips no transaction in flight."""
        first = True
        while not self._stopped:
            if self._paused:
                await self._wait(None)
                continue
            try:
                if self._reader is None:
                    self._reader = await self._server.connect(self.name)
                    self._outages.over()
                    first = False
                if not await self._ready(self._reader):
                    yield []
                    await self._wait(None)
                    continue
                rows, ended = await self._asked(self._reader, self._next(self._reader))
            except Unreachable as error:
                if first:
                    raise
                await self._back_off(error)
            except LOST as error:
                await self._lose_reader()
                await self._back_off(error)
            except psycopg.Error as error:
                raise told(self.name, self._server, self._table, error) from error
            else:
                if rows:
                    yield rows
                elif ended:
                    return
                else:
                    await self._wait(self._reader)

    async def _back_off(self, error: BaseException) -> None:
        """Wait before the next attempt; a stop ends that."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._outages.wait(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while not self._stopped:
                    self._changed.clear()
                    await self._changed.wait()

    async def _asked(self, connection: Connection, call: Any) -> Any:
        return await bounded(connection, call, self._server.request_timeout)

    async def _lose_reader(self) -> None:
        connection, self._reader = self._reader, None
        self._locked = False
        await let_go(connection)

    _locked = False

    async def _ready(self, connection: Connection) -> bool:
        """Prepare a new connection; False while another program of the group reads."""
        if self._locked:
            return True
        outbox = self._outbox
        self._locked = await self._asked(connection, outbox.locked(connection))
        if not self._locked:
            if not self._said:
                log.warning(
                    "%s: another program reads as %r; waiting for its end",
                    self.name,
                    outbox.source,
                )
            self._said = True
            if not self._checkpointed:
                outbox.window = None  # the other one moves the position
            return False
        await self._asked(connection, self._prepare(connection))
        self._said = False
        return True

    async def _prepare(self, connection: Connection) -> None:
        outbox = self._outbox
        if self._create:
            await outbox.create(connection, "bytea")
        outbox.prepare(await columns_of(connection, self._table))
        if self._notify is not None:
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._notify)))
        if self._end is None and self._until_end:
            _, self._end = await outbox.snapshot(connection)
        if outbox.window is None:
            if self._fresh and not self._delete:
                await outbox.forget(connection)
            await outbox.begin(connection)
            if self._delete and not self._fresh:
                await outbox.delete_behind(connection)
            self._fresh = False

    async def _next(self, connection: Connection) -> tuple[list[Record | Bad], bool]:
        """Read the next rows, and say whether there can be no more."""
        outbox = self._outbox
        while not (rows := await outbox.read(connection)):
            oldest, _ = await outbox.snapshot(connection)
            await self._watch(connection, oldest)
            if self._end is not None:
                oldest = min(oldest, self._end)
            if not outbox.advance(oldest):
                assert outbox.window is not None
                return [], self._end is not None and outbox.window[1] >= self._end
        return [self._record(row) for row in rows], False

    async def _watch(self, connection: Connection, oldest: int) -> None:
        """Warn when a transaction holds rows up for long."""
        since, now = self._since, time.monotonic()
        if since[0] != oldest:
            self._since = (oldest, now)
        elif now - since[1] > _HELD_UP_SECONDS and await self._outbox.say_what_holds_up(connection):
            self._since = (oldest, now + 9 * _HELD_UP_SECONDS)

    def _record(self, row: tuple[Any, ...]) -> Record | Bad:
        window = self._outbox.window
        assert window is not None
        number, payload, key, headers, created = row
        position = (window[0], window[1], number)
        if self._delete:
            self._given.append(position)
        origin = (key, self._table, self._table, position, created)
        try:
            if payload is None:
                raise ValueError("`payload` is null")
            pairs = _pairs(headers)
        except Exception as error:
            return Bad(Record(bytes(payload or b""), *origin), error)
        return decoded(self._decode, bytes(payload), *origin, pairs)

    async def _wait(self, connection: Connection | None) -> None:
        """Wait for a notification, for the next look, or to be told something."""
        self._changed.clear()
        if self._stopped:
            return
        told_something = asyncio.ensure_future(self._changed.wait())
        waits: set[asyncio.Future[Any]] = {told_something}
        if connection is not None and self._notify is not None:
            waits.add(asyncio.ensure_future(self._notified(connection)))
        # A notification is waited for as long as `poll`; here it is left to end by itself.
        limit = None if self._paused else self._poll + 5 * (len(waits) - 1)
        try:
            await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told_something.cancel()
            for notified in waits - {told_something}:
                if not notified.done() and connection is not None:
                    cut(connection)
                with contextlib.suppress(psycopg.Error, OSError):
                    await notified  # the next statement fails as well

    async def _notified(self, connection: Connection) -> None:
        async for _ in connection.notifies(timeout=self._poll, stop_after=1):
            pass

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Begin behind the position of a checkpoint, whatever is stored in the database."""
        self._checkpointed = True
        if self._table in positions:
            self._outbox.seek(positions[self._table])

    def remember(self, positions: Mapping[Partition, Iterable[Position]]) -> None:
        """Give the rows at these positions the same ones again."""
        self._outbox.remember(positions.get(self._table, ()))

    @overload
    async def commit(self, first: Mapping[Partition, Position], /) -> None: ...

    @overload
    async def commit(self, first: int, positions: Mapping[Partition, Position], /) -> None: ...

    async def commit(self, first: Any, positions: Any = None, /) -> None:
        """Commit as a source, or as a sink.

        With positions: store them, or delete the rows up to them. With an epoch and the positions
        of another source: commit the rows that were written together with them, all or nothing.

        Raises:
            Superseded: When another program has begun under the same name.
            ConnectError: When the server refuses a row.

        """
        if positions is None:
            await self._commit_positions(first)
        else:
            async with self._writing:
                await self._rows.commit(first, positions)

    async def _commit_positions(self, positions: Mapping[Partition, Position]) -> None:
        if self._table not in positions:
            return
        position = positions[self._table]
        ids = [row[2] for row in self._given if row <= position]
        while True:
            try:
                if self._committer is None:
                    self._committer = await self._server.connect(self.name)
                if self._delete:
                    call = self._outbox.delete(self._committer, ids)
                else:
                    call = self._outbox.store(self._committer, position)
                await self._asked(self._committer, call)
            except (Unreachable, *LOST) as error:
                connection, self._committer = self._committer, None
                await let_go(connection)
                await asyncio.sleep(self._outages.wait(error))
            except psycopg.Error as error:
                raise told(self.name, self._server, self._table, error) from error
            else:
                self._outages.over()
                while self._given and self._given[0] <= position:
                    self._given.popleft()
                return

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Read no more."""
        self._paused = self._paused or self._table in partitions

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Read again."""
        self._paused = self._paused and self._table not in partitions
        self._changed.set()

    def stop(self) -> None:
        """End the iteration."""
        self._stopped = True
        self._changed.set()

    def lag(self) -> dict[Partition, int]:
        """How far the table's highest id is beyond the highest that was read."""
        return {self._table: self._outbox.beyond}

    # The sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Take results as rows: dicts of columns.

        Raises:
            TypeError: When a result is no dict.
            ValueError: When it has an entry that the table has no column for.
            ConnectError: When the server is not there, or refuses a row.

        """
        rows = [addressed(key, result) for key, result in results]
        async with self._writing:
            await self._rows.write(rows)

    async def flush(self) -> None:
        """Commit the rows; behind `begin`, only have the server take them.

        Raises:
            ConnectError: When the server refuses one of them.

        """
        async with self._writing:
            await self._rows.flush()

    def for_shard(self, _name: str) -> Postgres:
        """Give a sink with a connection, and with transactions, of its own."""
        sink = copy.copy(self)
        sink._rows, sink._writing = self._new_rows(), asyncio.Lock()
        return sink

    async def begin(self, name: str, epoch: int = 0) -> int:
        """Have rows show with `commit` alone, and give the last epoch of this name.

        Raises:
            PositionLost: When the checkpoint has an epoch, and the database knows nothing of it.

        """
        async with self._writing:
            return await self._rows.begin(name, epoch)

    async def close(self) -> None:
        """Disconnect. Rows that were not flushed are not stored."""
        self.stop()
        await self._lose_reader()
        committer, self._committer = self._committer, None
        await let_go(committer)
        await self._rows.close()


def _pairs(headers: str | None) -> Headers:
    """Give the headers of a row; `null` of JSON, which libraries write for none, is none as well.

    Raises:
        ValueError: When they are no object.

    """
    found = json.loads(headers or "null")
    if found is None:
        return ()
    if not isinstance(found, dict):
        raise ValueError(f"`headers` is an object of JSON, and not {headers}")
    return tuple(
        (name, (value if isinstance(value, str) else json.dumps(value)).encode())
        for name, value in found.items()
    )


def _start(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _upsert(text: str) -> bool | list[str]:
    with contextlib.suppress(ValueError):
        return boolean(text)
    return text.split(",")


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "group": str,
    "start": _start,
    "until": str,
    "delete": boolean,
    "create": boolean,
    "poll": float,
    "notify": str,
    "upsert": _upsert,
    "key": str,
    "decode": str,
    "password_file": str,
    "tls": lambda text: text if "/" in text else boolean(text),
    "connect_timeout": float,
    "request_timeout": float,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> Postgres:
    """Make the endpoint of `postgres://user:password@host:port/database/table?group=...`."""
    values = settings_of(settings, _SETTINGS, url.scheme) | login_of(url)
    database, _, table = url.path[1:].partition("/")
    if not database or not table:
        raise ValueError(f"a {url.scheme} URL ends in /DATABASE/TABLE")
    server = url.netloc.rpartition("@")[2]
    return postgres(server, unquote(database), unquote(table), **values)
