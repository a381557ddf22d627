"""An outbox and a table of a PostgreSQL server for one test."""

import asyncio
import json
import uuid

import pytest
from conformance import Peer

from servers.server import free_port
from velo import connect

psycopg = pytest.importorskip("psycopg")

OUTBOX = """create table {0} (
    id bigserial primary key, key text, payload {1} not null, headers jsonb,
    created timestamptz not null default now(), xid xid8 not null default pg_current_xact_id());
create index on {0} (xid, id)"""


class PostgresPeer(Peer):
    """An outbox, and a table with a column `number`."""

    seeks = True

    def __init__(self, server):
        self.server = server
        self.address = f"127.0.0.1:{server.port}"
        self.table = f"t{uuid.uuid4().hex}"
        self.out = f"{self.table}_out"
        self.login = {"user": server.admin, "password": server.admin_password}

    async def open(self, kind="bytea"):
        self.connection = await self.connect()
        await self.connection.execute(OUTBOX.format(self.table, kind))
        await self.connection.execute(
            f"create table {self.out} (n bigserial, number int, primary key (n))"
        )
        return self

    async def connect(self):
        return await psycopg.AsyncConnection.connect(self.server.dsn(), autocommit=True)

    async def close(self):
        await self.connection.close()

    async def insert(self, connection, *values, key=None, headers=()):
        table = {name: value.decode() for name, value in headers}
        for value in values:
            await connection.execute(
                f"insert into {self.table} (key, payload, headers) values (%s, %s, %s)",
                [key, value, json.dumps(table)],
            )

    async def produce(self, values, key=None, headers=()):
        await self.insert(self.connection, *values, key=key, headers=headers)

    async def rows(self, query):
        return await (await self.connection.execute(query)).fetchall()

    async def written(self, count):
        rows = await self.rows(f"select number from {self.out} order by n")
        assert len(rows) == count
        return [b'{"number":%d}' % number for (number,) in rows]

    def source(self, **settings):
        settings = {"poll": 0.05, **self.login, **settings}
        return connect.postgres(self.address, "postgres", self.table, **settings)

    def sink(self, **settings):
        settings = {**self.login, **settings}
        return connect.postgres(self.address, "postgres", self.out, **settings)

    def source_of_nothing(self):
        return connect.postgres(f"127.0.0.1:{free_port()}", "postgres", "t", **self.login)


# Named apart from what tests call it: these modules import it.
@pytest.fixture(name="peer")
async def own_tables(postgres):
    """An outbox, and a table, of the server that tests share."""
    peer = await PostgresPeer(postgres).open()
    yield peer
    await peer.close()


async def rest(iteration, count):
    """The next `count` values."""
    values = []
    async with asyncio.timeout(30):
        while len(values) < count:
            values += [item.value for item in await anext(iteration)]
    return values
