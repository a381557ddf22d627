"""Names the transaction that a statement waits for: the server itself says nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from velo.connect._postgres.link import Connection, Server, bounded, let_go, psycopg
from velo.connect.errors import ConnectError
from velo.connect.settings import log

__all__ = ["BACKEND", "backend", "naming_blockers"]

# The seconds after which a wait is looked into, and again until a reason is found.
_LOOK_AFTER = 5.0

BACKEND = (
    "pid, usename, coalesce(application_name, ''), extract(epoch from now() - xact_start)::int"
)
"""The columns of `pg_stat_activity` that `backend` takes."""


def backend(row: tuple[Any, ...]) -> str:
    """Describe a process of the server and its transaction, for messages."""
    pid, user, application, seconds = row
    since = "" if seconds is None else f", open for {seconds} s"  # this user may not see it
    return f"process {pid} of {user!r} ({application!r}){since}"


@contextlib.asynccontextmanager
async def naming_blockers(server: Server, connection: Connection, name: str) -> AsyncIterator[None]:
    """While a statement runs in the block, and waits for a lock for long, say whose that is.

    Args:
        server: The server.
        connection: The connection of the statement.
        name: What is written, for the message.

    """
    looking = asyncio.create_task(_look(server, connection.info.backend_pid, name))
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])


async def _look(server: Server, pid: int, name: str) -> None:
    waited = 0.0
    while True:
        await asyncio.sleep(_LOOK_AFTER)
        waited += _LOOK_AFTER
        with contextlib.suppress(ConnectError, psycopg.Error):  # the server does not tell
            if found := await _blockers(server, pid, name):
                log.warning(
                    "%s: has waited %g s for locks, and goes on waiting for the end of %s; if "
                    "that stands still, end its program, or call `pg_terminate_backend`",
                    *(name, waited, ", and of ".join(found)),
                )
                return


async def _blockers(server: Server, pid: int, name: str) -> list[str]:
    """Give the transactions that a process of the server waits for."""

    async def ask() -> list[tuple[Any, ...]]:
        cursor = await connection.execute(
            f"select {BACKEND} from unnest(pg_blocking_pids(%s)) as blocking (pid) "
            "left join pg_stat_activity using (pid) order by xact_start",
            [pid],
        )
        return await cursor.fetchall()

    connection = await server.connect(name)
    try:
        rows = await bounded(connection, ask(), server.request_timeout)
    finally:
        await let_go(connection)
    return [backend(row) if row[0] else "a prepared transaction" for row in rows]
