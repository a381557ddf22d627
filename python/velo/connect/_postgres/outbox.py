"""An outbox table, read in an order that skips no transaction that is still in flight.

A row gets its id before its transaction commits, so that a row with a higher id may be there first.
Each row therefore has the id of its transaction (`xid`), and is read when that transaction and all
older ones have ended: `xid < pg_snapshot_xmin`. What becomes readable at once is a window, from the
last `pg_snapshot_xmin` to the present one, and is read in the order of the ids. A transaction that
saw the row of another cannot be in an earlier window than it, and has a higher id within the same.

A position is the window and the id in it: `(from, to, id)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from velo.connect._postgres.blocking import BACKEND, backend
from velo.connect._postgres.link import (
    Connection,
    ensure,
    named,
    psycopg,
    sql,
)
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost
from velo.connect.settings import log

__all__ = ["Outbox", "Window"]

Window = tuple[int, int, int]
"""Where a window of transactions begins and ends, and the last id that was read in it."""

BATCH = 500
_POSITIONS = sql.SQL(
    "(source text primary key, position jsonb not null, updated timestamptz not null)"
)
_TABLE = """create table {table} (
    id bigserial primary key,
    key text,
    payload {kind} not null,
    headers jsonb,
    created timestamptz not null default now(),
    xid xid8 not null default pg_current_xact_id()
);
create index on {table} (xid, id)"""


class Outbox:
    """The table of a source, and the position that is stored for it.

    Attributes:
        source: The name of the source in `velo_positions`.
        window: The window that is read, and the last id that was read in it.

    """

    def __init__(self, name: str, at: str, table: str, source: str, start: float | str) -> None:
        self.source = source
        self.window: Window | None = None
        self._most = 0
        self._name = name
        self._at = at
        self._table = table
        self._start = start
        self._since = start if isinstance(start, float) else None
        self._highest = 0
        self._query: sql.Composed | None = None
        self._sought: Window | None = None
        # Where windows of an earlier run began and ended, so that they do again.
        self._bounds: list[int] = []

    def seek(self, position: Window) -> None:
        """Begin behind the position of a checkpoint."""
        self._sought = position

    def remember(self, positions: Iterable[Window]) -> None:
        """Read the rows at these positions in the same windows again."""
        self._bounds = sorted({bound for begin, end, _ in positions for bound in (begin, end)})

    @property
    def beyond(self) -> int:
        """How far the table's highest id, at the last look, is beyond the highest that was read."""
        return max(0, self._most - self._highest)

    async def create(self, connection: Connection, kind: str) -> None:
        """Create the table, unless it is there."""
        statement = sql.SQL(_TABLE).format(table=named(self._table), kind=sql.SQL(kind))
        try:
            await connection.execute(statement)
        except (psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
            return

    def prepare(self, columns: dict[str, str]) -> None:
        """Choose the columns that are read, out of those that the table has.

        Raises:
            ConnectError: When there is no such table, or it has no place for the transaction.

        """
        at = f"{self._name}: table {self._table!r} at {self._at}"
        if not columns:
            raise NoSuchTopic(f"{at} does not exist; create it first, or with `create`")
        if absent := {"id", "payload", "xid"} - columns.keys():
            hint = (
                "; alter table ... add column xid xid8 not null default pg_current_xact_id()"
                if "xid" in absent
                else ""
            )
            raise ConnectError(f"{at} has no column {', '.join(sorted(absent))}{hint}")
        if self._since is not None and "created" not in columns:
            raise ConnectError(f"{at} has no column `created`, which a time to start at needs")

        def choice(name: str, expression: str) -> sql.SQL:
            return sql.SQL(expression if name in columns else "null")

        payload = "payload" if columns["payload"] == "bytea" else "convert_to(payload::text,'UTF8')"
        since = "and created >= to_timestamp({start})" if self._since is not None else ""
        self._query = sql.SQL(
            "select id, {payload}, {key}, {headers}, {created} from {table} "
            "where xid >= %s::text::xid8 and xid < %s::text::xid8 and id > %s {since} "
            "order by id limit {limit}"
        ).format(
            payload=sql.SQL(payload),
            key=choice("key", "key::text"),
            headers=choice("headers", "headers::text"),
            created=choice("created", "extract(epoch from created)::float8"),
            table=named(self._table),
            since=sql.SQL(since).format(start=self._since),
            limit=BATCH,
        )

    async def locked(self, connection: Connection) -> bool:
        """Become the only reader of the source, or say that another one is."""
        cursor = await connection.execute(
            "select pg_try_advisory_lock(hashtextextended('velo ' || %s, 0))", [self.source]
        )
        row = await cursor.fetchone()
        return row is not None and bool(row[0])

    async def snapshot(self, connection: Connection) -> tuple[int, int]:
        """Give the oldest transaction in flight, and the first that has not begun."""
        query = sql.SQL(
            "select pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, "
            "coalesce((select max(id) from {}), 0) from pg_current_snapshot() s"
        ).format(named(self._table))
        row = await (await connection.execute(query)).fetchone()
        assert row is not None
        if self.window is None and self._start == "latest":
            self._highest = row[2]
        self._most = row[2]
        return row[0], row[1]

    async def begin(self, connection: Connection) -> None:
        """Find the window to begin with.

        Raises:
            PositionLost: When the stored one is none of this database.

        """
        oldest, next_one = await self.snapshot(connection)
        start, self._start = self._start, "committed"  # when another program was in between
        if self._sought is not None:
            self._begin_behind(self._sought, next_one, "a checkpoint", "a new checkpoint")
        elif start == "committed" and (stored := await self._stored(connection)) is not None:
            of = f"{self.source!r} in `velo_positions`"
            self._begin_behind(stored, next_one, of, "`start`")
        else:
            self.window = (oldest, oldest, 0) if start == "latest" else (0, oldest, 0)

    def _begin_behind(self, window: Window, next_one: int, of: str, remedy: str) -> None:
        _, end, last = window
        if end > next_one:
            raise PositionLost(
                f"{self._name}: the position of {of} at {self._at} is of transaction {end}, which "
                "this database has not reached: it was restored from a copy. Choose where to begin "
                f"with {remedy}"
            )
        self.window, self._highest = window, last

    async def _stored(self, connection: Connection) -> Window | None:
        await ensure(connection, "velo_positions", _POSITIONS)
        cursor = await connection.execute(
            "select position from velo_positions where source = %s", [self.source]
        )
        row = await cursor.fetchone()
        return None if row is None else (row[0][0], row[0][1], row[0][2])

    async def forget(self, connection: Connection) -> None:
        """Drop the stored position: the source begins elsewhere."""
        await ensure(connection, "velo_positions", _POSITIONS)
        await connection.execute("delete from velo_positions where source = %s", [self.source])

    async def read(self, connection: Connection) -> list[tuple[Any, ...]]:
        """Read the next rows of the window."""
        assert self.window is not None
        assert self._query is not None
        begin, end, last = self.window
        if begin == end:
            return []
        cursor = connection.cursor(binary=True)
        await cursor.execute(self._query, [str(begin), str(end), last])
        rows = await cursor.fetchall()
        if rows:
            self.window = (begin, end, rows[-1][0])
            self._highest = max(self._highest, rows[-1][0])
        return rows

    def advance(self, oldest: int) -> bool:
        """Go on to the window up to the oldest transaction in flight; False when it is empty."""
        assert self.window is not None
        _, end, _ = self.window
        oldest = min([oldest, *(bound for bound in self._bounds if bound > end)])
        if oldest <= end:
            return False
        self.window = (end, oldest, 0)
        return True

    async def store(self, connection: Connection, position: Window) -> None:
        """Store a position, unless a later one is stored."""
        await ensure(connection, "velo_positions", _POSITIONS)
        await connection.execute(
            "insert into velo_positions values (%s, %s::jsonb, now()) on conflict (source) "
            "do update set position = excluded.position, updated = excluded.updated "
            "where velo_positions.position < excluded.position",
            [self.source, json.dumps(position)],
        )

    async def delete_behind(self, connection: Connection) -> None:
        """Delete the rows that were handled before the checkpoint's position was stored."""
        if self._sought is not None:
            begin, end, last = self._sought
            await connection.execute(
                sql.SQL(
                    "delete from {} where xid < %s::text::xid8 or xid < %s::text::xid8 and id <= %s"
                ).format(named(self._table)),
                [str(begin), str(end), last],
            )

    async def delete(self, connection: Connection, ids: list[int]) -> None:
        """Delete rows that are handled."""
        await connection.execute(
            sql.SQL("delete from {} where id = any(%s)").format(named(self._table)), [ids]
        )

    async def say_what_holds_up(self, connection: Connection) -> bool:
        """Warn of the transaction that rows wait for; False when none wait."""
        assert self.window is not None
        cursor = await connection.execute(
            sql.SQL("select exists (select from {} where xid >= %s::text::xid8)").format(
                named(self._table)
            ),
            [str(self.window[1])],
        )
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return False
        cursor = await connection.execute(
            f"select {BACKEND} from pg_stat_activity "
            "where backend_xid is not null order by age(backend_xid) desc limit 1"
        )
        found = await cursor.fetchone()
        by = "a transaction that is not shown, perhaps a prepared one"
        if found is not None:
            by = backend(found)
        log.warning("%s: committed rows wait for an older transaction to end: %s", self._name, by)
        return True
