"""Connections to a PostgreSQL server by psycopg, whose calls end even when the server is silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
    missing,
)

try:
    import psycopg
    from psycopg import sql
except ImportError as error:
    raise missing("`connect.postgres`", "postgres") from error

__all__ = [
    "LOST",
    "Connection",
    "Server",
    "bounded",
    "columns_of",
    "cut",
    "ensure",
    "let_go",
    "named",
    "psycopg",
    "sql",
    "told",
]

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
T = TypeVar("T")

# With these, a statement fails whose connection is lost.
LOST = (psycopg.OperationalError, psycopg.InterfaceError)

# A server finds out within about a minute that a client is gone, and lets its locks go.
_KEEPALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"


@dataclass(frozen=True)
class Server:
    """Where a database is, and how to log in."""

    host: str
    port: int
    database: str
    user: str | None
    password: str | None
    tls: bool | str
    connect_timeout: float
    request_timeout: float

    def __repr__(self) -> str:
        """Give address and database alone."""
        return f"{self.host}:{self.port}/{self.database}"

    async def connect(self, name: str) -> Connection:
        """Connect, in autocommit.

        Raises:
            ConnectError: When the server is not there, or refuses.

        """
        settings: dict[str, Any] = {"options": _KEEPALIVE}
        if self.tls:
            authority = "system" if self.tls is True else self.tls
            settings |= {"sslmode": "verify-full", "sslrootcert": authority}
        attempt = asyncio.ensure_future(
            psycopg.AsyncConnection.connect(
                host=self.host,
                port=self.port,
                dbname=self.database,
                user=self.user,
                password=self.password,
                autocommit=True,
                connect_timeout=max(1, round(self.connect_timeout)),
                application_name=f"velo: {name}"[:63],
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
                **settings,
            )
        )
        try:
            async with asyncio.timeout(self.connect_timeout):
                return await attempt
        except TimeoutError as error:
            raise self._unreachable(name, f"no answer within {self.connect_timeout:g} s") from error
        except psycopg.Error as error:
            raise self._refused(name, error) from error

    def _refused(self, name: str, error: psycopg.Error) -> ConnectError:
        """Say what an error of connecting means; libpq gives a text alone."""
        # Where a host has several addresses, each has its line.
        why = " ".join(str(error).split())
        at = f"{name}: the PostgreSQL server at {self.host}:{self.port}"
        if "does not exist" in why and "database" in why and "role" not in why:
            return NoSuchTopic(f"{at} has no database {self.database!r}")
        if any(part in why for part in ("authentication failed", "no password", "pg_hba.conf")) or (
            "role" in why and "does not exist" in why
        ):
            user = "without a user" if self.user is None else f"as {self.user!r}"
            return AuthenticationFailed(
                f"{at} refuses the login {user}: check `user` and `password`, and pg_hba.conf"
            )
        if "permission denied" in why:
            return PermissionDenied(f"{at} refuses: {why}")
        return self._unreachable(name, why)

    def _unreachable(self, name: str, why: str) -> Unreachable:
        hint = "is its certificate trusted, and TLS meant?" if "SSL" in why else "does it run?"
        return Unreachable(f"{name}: no PostgreSQL server answers at {self}: {why}; {hint}")


async def bounded(connection: Connection, call: Coroutine[Any, Any, T], seconds: float | None) -> T:
    """Run statements of a connection; one that takes too long, or is cancelled, loses it.

    Cancelling the call itself would wait for the server, which may never answer.

    Raises:
        psycopg.OperationalError: When the connection is lost.

    """
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        cut(connection)
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
    if not done:
        cut(connection)
        try:
            # The answer may be here already. What has moved on by it must not lose it.
            return await task
        except (psycopg.Error, OSError) as error:
            raise psycopg.OperationalError(f"no answer within {seconds:g} s") from error
    return task.result()


def cut(connection: Connection) -> None:
    """End a connection at once: what waits for the server fails."""
    with contextlib.suppress(psycopg.Error, OSError):
        descriptor = os.dup(connection.fileno())
        with socket.socket(fileno=descriptor) as end:
            end.shutdown(socket.SHUT_RDWR)


async def let_go(connection: Connection | None) -> None:
    """Close a connection, lost or not."""
    if connection is not None:
        with contextlib.suppress(psycopg.Error, OSError):
            await connection.close()


def named(table: str) -> sql.Identifier:
    """Give a table's name, with its schema where it has one, as an identifier."""
    return sql.Identifier(*table.split("."))


def told(name: str, server: Server, table: str, error: psycopg.Error) -> ConnectError:
    """Say what an error of a statement means."""
    why = " ".join(str(error).split())
    at = f"{name}: table {table!r} at {server}"
    if isinstance(error, psycopg.errors.UndefinedTable):
        return NoSuchTopic(f"{at}: {why}; create it first")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return PermissionDenied(f"{at}: {why}; grant it to {server.user!r}")
    return ConnectError(f"{at}: {why}")


async def columns_of(connection: Connection, table: str) -> dict[str, str]:
    """Give the columns of a table with their types; none where it does not exist."""
    cursor = await connection.execute(
        "select attname, format_type(atttypid, null) from pg_attribute "
        "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attnum",
        [named(table).as_string(connection)],
    )
    return dict(await cursor.fetchall())


async def ensure(connection: Connection, table: str, definition: sql.SQL) -> None:
    """Create a table of velo where it is missing; the right to do so is needed only then."""
    if not await columns_of(connection, table):
        with contextlib.suppress(psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
            await connection.execute(
                sql.SQL("create table if not exists {} {}").format(named(table), definition)
            )
