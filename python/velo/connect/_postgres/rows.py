"""Results as rows of tables, in one transaction from flush to flush."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from velo.connect._postgres.blocking import naming_blockers
from velo.connect._postgres.link import (
    LOST,
    Connection,
    Server,
    bounded,
    columns_of,
    ensure,
    let_go,
    named,
    psycopg,
    sql,
    told,
)
from velo.connect.errors import (
    ConnectError,
    NoSuchTopic,
    PositionLost,
    Superseded,
    Unreachable,
)
from velo.connect.formats import encoder
from velo.connect.model import To
from velo.connect.settings import Outages

__all__ = ["Rows"]

_BATCH = 500
_TO_JSON = encoder("json")
# `writer` is the program that may commit the next epoch; `positions` are for people to look at.
_COMMITS = sql.SQL(
    "(sink text primary key, epoch bigint not null, positions text not null, writer text not null)"
)


class Rows:
    """The sink of a table.

    Rows are kept until their transaction is committed, so that a lost connection loses none.
    """

    def __init__(
        self, name: str, server: Server, table: str, upsert: bool | Sequence[str], key: str | None
    ) -> None:
        self.outages = Outages(name, str(server))
        self._name = name
        self._server = server
        self._table = table
        self._upsert = upsert
        self._key = key
        self._connection: Connection | None = None
        self._columns: dict[str, dict[str, str]] = {}
        self._conflict: dict[str, list[str]] = {}
        # Rows since the last commit, their table and values, and how many of them were sent.
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._sent = 0
        # The row of `velo_commits`. None: rows are committed by `flush`.
        self._sink: str | None = None
        self._writer = ""
        self._has_begun = False
        self._epoch = 0

    async def write(self, results: Sequence[To]) -> None:
        """Take rows, all or none of them; full batches are sent."""
        rows = []
        for to in results:
            table = to.topic or self._table
            await self._know(table)
            rows.append((table, self._row(table, to)))
        for row in rows:
            self._rows.append(row)
            if len(self._rows) - self._sent >= _BATCH:
                await self._safely(self._send)

    async def begin(self, name: str, epoch: int) -> int:
        """Commit rows with epochs alone, under a name, and shut out an earlier program of it.

        Raises:
            PositionLost: When there is no epoch of this name, and the checkpoint has one.

        """
        self._sink, self._writer = f"{name} {self._table}", secrets.token_hex(8)
        await self._safely(lambda: self._take_over(epoch))
        self._has_begun = True
        return self._epoch

    async def _take_over(self, epoch: int) -> None:
        connection = await self._open()
        await ensure(connection, "velo_commits", _COMMITS)
        if epoch and await self._last(connection) is None:
            raise PositionLost(
                f"{self._name}: the checkpoint has written {epoch} ticks of results, and the "
                f"database at {self._server} has no row {self._sink!r} in `velo_commits`: it is "
                "another database, or an older copy. Begin with a new checkpoint"
            )
        cursor = await connection.execute(
            "insert into velo_commits values (%s, 0, '{}', %s) on conflict (sink) "
            "do update set writer = excluded.writer returning epoch",
            [self._sink, self._writer],
        )
        row = await cursor.fetchone()
        assert row is not None
        self._epoch = row[0]

    async def flush(self) -> None:
        """Commit the rows, or, behind `begin`, have the server take them."""
        if self._rows and self._sink is not None:
            await self._safely(self._send)
        elif self._rows:
            await self._safely(self._commit_rows)
            self._forget()

    async def commit(self, epoch: int, positions: Mapping[Hashable, Any]) -> None:
        """Commit the rows with an epoch and positions, all or nothing.

        Raises:
            Superseded: When another program has begun under the same name.

        """
        if self._sink is None:
            raise ValueError(f"{self._name}: `commit` of an epoch wants `begin` first")
        told_before = False

        async def all_of_it() -> None:
            nonlocal told_before
            connection = await self._open()
            # A connection that is lost in the middle of a commit may have committed.
            if told_before and await self._last(connection) == (epoch, self._writer):
                return
            told_before = True
            await self._send()
            if self._idle(connection):
                await connection.execute("begin")
            cursor = await connection.execute(
                "update velo_commits set epoch = %s, positions = %s "
                "where sink = %s and writer = %s",
                [epoch, repr(dict(positions)), self._sink, self._writer],
            )
            if cursor.rowcount != 1:
                await connection.execute("rollback")
                raise self._superseded()
            await connection.execute("commit")

        await self._safely(all_of_it)
        self._forget()

    def _superseded(self) -> Superseded:
        return Superseded(
            f"{self._name}: another program goes on with the checkpoint {self._sink!r} at "
            f"{self._server}, and this one stores nothing more: run one of them"
        )

    async def _is_superseded(self) -> bool:
        """Say whether another program has begun under the same name since this one has."""
        if not self._has_begun:
            return False
        try:
            connection = await self._open()
            last = await bounded(connection, self._last(connection), self._server.request_timeout)
        except (ConnectError, psycopg.Error):
            return False  # the server does not tell
        return last is not None and last[1] != self._writer

    async def _last(self, connection: Connection) -> tuple[int, str] | None:
        """Give the last epoch, and the program that may commit the next one."""
        cursor = await connection.execute(
            "select epoch, writer from velo_commits where sink = %s", [self._sink]
        )
        row = await cursor.fetchone()
        return None if row is None else (row[0], row[1])

    @staticmethod
    def _idle(connection: Connection) -> bool:
        return connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    async def _open(self) -> Connection:
        if self._connection is None:
            self._connection = await self._server.connect(self._name)
        return self._connection

    async def _know(self, table: str) -> None:
        """Learn the columns of a table, and which of them decide that two rows are one."""
        if table in self._columns:
            return

        async def ask() -> None:
            connection = await self._open()
            columns = await columns_of(connection, table)
            if not columns:
                raise NoSuchTopic(
                    f"{self._name}: table {table!r} at {self._server} does not exist; create it "
                    "first"
                )
            conflict: list[str] = []
            if self._upsert is True:
                cursor = await connection.execute(
                    "select attname from pg_index join pg_attribute on attrelid = indrelid "
                    "and attnum = any(indkey) where indisprimary and indrelid = to_regclass(%s)",
                    [named(table).as_string(connection)],
                )
                conflict = [row[0] for row in await cursor.fetchall()]
                if not conflict:
                    raise ConnectError(
                        f"{self._name}: table {table!r} at {self._server} has no primary key: name "
                        "the columns of a unique index as `upsert`"
                    )
            elif self._upsert:
                conflict = list(self._upsert)
            self._conflict[table], self._columns[table] = conflict, columns

        await self._safely(ask)

    def _row(self, table: str, to: To) -> dict[str, Any]:
        if not isinstance(to.value, Mapping):
            raise TypeError(
                f"a result for table {table!r} is a dict of columns, not {type(to.value).__name__}"
            )
        row, columns = dict(to.value), self._columns[table]
        if self._key is not None:
            row.setdefault(self._key, to.key)
        if unknown := [str(name) for name in row if name not in columns]:
            raise ValueError(
                f"a result has {', '.join(unknown)}, which table {table!r} at {self._server} has "
                f"no column for; it has {', '.join(columns)}"
            )
        if absent := [name for name in self._conflict[table] if name not in row]:
            raise ValueError(f"a result for table {table!r} has no {', '.join(absent)}")
        for name, value in row.items():
            if columns[name] in ("json", "jsonb") and value is not None:
                row[name] = _TO_JSON(value).decode()  # text that the server casts
            elif isinstance(value, Mapping):
                raise TypeError(
                    f"column {name!r} of table {table!r} is {columns[name]}, and takes no dict"
                )
        return row

    async def _send(self) -> None:
        """Send the rows that were not sent, in their order: those of one form together."""
        connection = await self._open()
        while self._sent < len(self._rows):
            if self._idle(connection):
                await connection.execute("begin")
            table, first = self._rows[self._sent]
            end = self._sent
            while end < min(len(self._rows), self._sent + _BATCH):
                other, row = self._rows[end]
                if other != table or row.keys() != first.keys():
                    break
                end += 1
            rows = [[row[name] for name in first] for _, row in self._rows[self._sent : end]]
            async with connection.cursor() as cursor:
                await cursor.executemany(self._statement(table, list(first)), rows)
            self._sent = end

    def _statement(self, table: str, names: list[str]) -> sql.Composed:
        columns, conflict = self._columns[table], self._conflict[table]
        insert = sql.SQL("insert into {} ({}) values ({})").format(
            named(table),
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(
                sql.SQL("%s::" + columns[name])
                if columns[name] in ("json", "jsonb")
                else sql.SQL("%s")
                for name in names
            ),
        )
        if not conflict:
            return insert
        others = [name for name in names if name not in conflict]
        action = sql.SQL("do nothing")
        if others:
            action = sql.SQL("do update set {}").format(  # type: ignore[assignment]
                sql.SQL(", ").join(
                    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others
                )
            )
        return sql.SQL("{} on conflict ({}) {}").format(
            insert, sql.SQL(", ").join(map(sql.Identifier, conflict)), action
        )

    async def _commit_rows(self) -> None:
        await self._send()
        assert self._connection is not None
        await self._connection.execute("commit")

    def _forget(self) -> None:
        self._rows.clear()
        self._sent = 0

    async def _safely(self, call: Any) -> None:
        """Run statements; on a lost connection all of the transaction again on another one."""
        opened_before = self._connection is not None
        while True:
            try:
                connection = await self._open()
                async with naming_blockers(self._server, connection, self._name):
                    await bounded(connection, call(), self._server.request_timeout)
            except Unreachable as error:
                if not opened_before:
                    raise
                await asyncio.sleep(self.outages.wait(error))
            except LOST as error:
                opened_before = True
                await self._lose()
                await asyncio.sleep(self.outages.wait(error))
            except psycopg.Error as error:
                await self._lose()
                # The rows of the other program may be what refuses those of this one.
                if await self._is_superseded():
                    raise self._superseded() from error
                raise told(self._name, self._server, self._table, error) from error
            else:
                self.outages.over()
                return

    async def _lose(self) -> None:
        """Let the transaction go with its connection: its rows are sent again."""
        connection, self._connection = self._connection, None
        self._sent = 0
        await let_go(connection)

    async def close(self) -> None:
        """Disconnect. Rows that were not flushed are not stored."""
        await self._lose()
