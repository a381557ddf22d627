"""The connector of PostgreSQL, on a server of its own."""

import asyncio
import json
import uuid
from urllib.parse import urlsplit

import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, last_positions, take

from servers.server import free_port
from velo import connect
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    PositionLost,
    Superseded,
    Unreachable,
)

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


@pytest.fixture
async def peer(postgres):
    peer = await PostgresPeer(postgres).open()
    yield peer
    await peer.close()


async def waited(condition, seconds=30):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def rest(iteration, count):
    """So many more values."""
    values = []
    async with asyncio.timeout(30):
        while len(values) < count:
            values += [item.value for item in await anext(iteration)]
    return values


class TestPostgres(SourceConformance, SinkConformance):
    pass


async def test_a_transaction_in_flight_is_waited_for_and_not_skipped(peer):
    """Rows of transactions that ended together come in the order of their ids."""
    early, late = await peer.connect(), await peer.connect()
    await early.execute("begin")
    await early.execute("select pg_current_xact_id()")
    await late.execute("begin")
    await peer.insert(late, b"1")
    await peer.insert(early, b"2")
    await late.execute("commit")
    await peer.produce([b"3"])
    source = peer.source()
    iteration = aiter(source)
    first = asyncio.ensure_future(anext(iteration))
    await waited(lambda: source._outbox.window is not None and source.lag()[peer.table] >= 3)
    assert not first.done()
    await early.execute("commit")
    values = [item.value for item in await first]
    # They become readable together, in the order of their ids.
    assert values + await rest(iteration, 3 - len(values)) == [1, 2, 3]
    await close(source, iteration)
    await early.close()
    await late.close()


async def test_a_lower_id_of_a_newer_transaction_comes_although_a_higher_one_was_read(peer):
    """The id alone is no position: it was given out before the row that is read first ended."""
    older, newer = await peer.connect(), await peer.connect()
    for connection in (older, newer):
        await connection.execute("begin")
        await connection.execute("select pg_current_xact_id()")
    await peer.insert(newer, b"1")
    await peer.insert(older, b"2")
    await older.execute("commit")
    source = peer.source()
    items, iteration = await take(source, 1)
    assert items[0].value == 2
    await source.commit(last_positions(items))
    await close(source, iteration)
    await newer.execute("commit")
    source = peer.source()
    items, iteration = await take(source, 1)
    assert items[0].value == 1
    await close(source, iteration)
    await older.close()
    await newer.close()


async def test_many_writers_at_once_lose_no_row(peer):
    """Each commits at its own time, while the source reads and commits."""
    source, seen = peer.source(), []

    async def write(number):
        connection = await peer.connect()
        for index in range(15):
            async with connection.transaction():
                await peer.insert(connection, b"%d" % (100 * number + index))
                await asyncio.sleep(0.001 * (number % 3))
        await connection.close()

    writers = asyncio.gather(*map(write, range(8)))
    async with asyncio.timeout(60):
        async for batch in source:
            seen += [item.value for item in batch]
            if batch:
                await source.commit(last_positions(batch))
            if len(seen) >= 120:
                break
    await writers
    await source.close()
    assert sorted(seen) == sorted(100 * n + i for n in range(8) for i in range(15))
    for number in range(8):  # the rows of one writer keep their order
        assert [v % 100 for v in seen if v // 100 == number] == list(range(15))


async def test_a_position_within_a_window_goes_on_within_it(peer):
    async with peer.connection.transaction():
        await peer.produce([b"%d" % number for number in range(8)])
    source = peer.source()
    items, iteration = await take(source, 8)
    await source.commit(last_positions(items[:3]))
    await close(source, iteration)
    await peer.produce([b"8"])
    source = peer.source()
    _, iteration = [], aiter(source)
    assert await rest(iteration, 6) == [3, 4, 5, 6, 7, 8]
    await close(source, iteration)


async def test_lag_is_what_lies_beyond_the_last_row(peer):
    await peer.produce([b"%d" % number for number in range(600)])
    source = peer.source()
    items, iteration = await take(source, 600)
    await source.commit(last_positions(items))
    await close(source, iteration)
    source = peer.source(until="end")
    assert [batch async for batch in source] == []
    assert source.lag() == {peer.table: 0}
    await source.close()
    source = peer.source(group="another")
    _, iteration = await take(source, 500)
    assert source.lag() == {peer.table: 100}
    await close(source, iteration)


async def test_json_and_text_payloads(postgres):
    for kind in ("jsonb", "text"):
        peer = await PostgresPeer(postgres).open(kind)
        await peer.connection.execute(
            f"""insert into {peer.table} (payload) values ('{{"a": "ä"}}')"""
        )
        source = peer.source()
        (item,), iteration = await take(source, 1)
        assert item.value == {"a": "ä"}
        await close(source, iteration)
        await peer.close()


async def test_delete_removes_what_is_handled(peer):
    await peer.produce([b"1", b"2", b"3"])
    source = peer.source(delete=True)
    items, iteration = await take(source, 3)
    await source.commit(last_positions(items[:2]))
    assert await peer.rows(f"select payload from {peer.table}") == [(b"3",)]
    await close(source, iteration)
    source = peer.source(delete=True)
    (item,), iteration = await take(source, 1)
    assert item.value == 3
    await source.commit(last_positions([item]))
    assert await peer.rows(f"select payload from {peer.table}") == []
    await close(source, iteration)


async def test_where_to_start_and_to_end(peer):
    await peer.produce([b"1"])
    await peer.connection.execute(f"update {peer.table} set created = to_timestamp(1000)")
    await peer.produce([b"2"])

    async def read(**settings):
        source = peer.source(until="end", **settings)
        values = []
        async with asyncio.timeout(30):
            async for batch in source:
                values += [item.value for item in batch]
                await source.commit(last_positions(batch))
        await source.close()
        return values

    assert await read() == [1, 2]
    assert await read() == []
    assert await read(group="another") == [1, 2]
    assert await read(start="earliest") == [1, 2]
    assert await read(start=2000) == [2]
    assert await read(start="latest") == []
    await peer.produce([b"3"])
    assert await read(group="another") == [3]


async def test_a_notification_is_a_reason_to_look(peer):
    source = peer.source(poll=60, notify="news")
    iteration = aiter(source)
    waiting = asyncio.ensure_future(anext(iteration))
    await waited(lambda: source._outbox.window is not None)
    await peer.produce([b"1"])
    while not waiting.done():  # the first may come before it listens
        await peer.connection.execute("notify news")
        await asyncio.wait({waiting}, timeout=0.2)
    assert [item.value for item in await waiting] == [1]
    waiting = asyncio.ensure_future(anext(iteration))
    await asyncio.sleep(0)
    source.stop()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(waiting, 30)
    await source.close()


async def test_one_program_of_a_group_reads_and_another_takes_over(peer, caplog):
    await peer.produce([b"1", b"2"])
    first, second = peer.source(), peer.source()
    items, iteration = await take(first, 2)
    await first.commit(last_positions(items[:1]))
    standby = aiter(second)
    assert await asyncio.wait_for(anext(standby), 30) == []
    assert "another program reads" in caplog.text
    await close(first, iteration)
    assert await rest(standby, 1) == [2]
    await close(second, standby)


async def test_a_paused_source_reads_nothing_until_it_is_resumed(peer):
    await peer.produce([b"1"])
    source = peer.source()
    (item,), iteration = await take(source, 1)
    source.pause([peer.table])
    more = asyncio.ensure_future(anext(iteration))
    await peer.produce([b"2"])
    await asyncio.sleep(0.2)  # several looks, had it not paused
    assert not more.done()
    source.resume([peer.table])
    assert [item.value for item in await asyncio.wait_for(more, 30)] == [2]
    await close(source, iteration)


async def test_rows_that_are_held_up_are_told(peer, caplog, monkeypatch):
    monkeypatch.setattr("velo.connect._postgres.endpoint._HELD_UP_SECONDS", 0.1)
    slow = await peer.connect()
    await slow.execute("begin")
    await slow.execute("select pg_current_xact_id()")
    await peer.produce([b"1"])
    source = peer.source()
    iteration = aiter(source)
    waiting = asyncio.ensure_future(anext(iteration))
    await waited(lambda: "wait for an older transaction" in caplog.text)
    assert f"process {slow.info.backend_pid} of 'admin'" in caplog.text
    await slow.execute("rollback")
    assert [item.value for item in await waiting] == [1]
    await close(source, iteration)
    await slow.close()


async def test_a_table_that_is_no_outbox_is_told(peer):
    source = connect.postgres(peer.address, "postgres", "missing", **peer.login)
    with pytest.raises(NoSuchTopic, match="missing"):
        await take(source, 1)
    await source.close()
    await peer.connection.execute(f"alter table {peer.table} drop column xid")
    source = peer.source()
    with pytest.raises(ConnectError, match="alter table ... add column xid xid8"):
        await take(source, 1)
    await source.close()


async def test_create_makes_the_outbox(peer):
    name = f"public.{peer.table}_new"
    for _ in range(2):
        source = connect.postgres(
            peer.address, "postgres", name, create=True, until="end", **peer.login
        )
        assert [batch async for batch in source] == []
        await source.close()
    assert await peer.rows(f"select * from {name}") == []


async def test_a_position_of_another_database_is_lost(peer):
    await peer.produce([b"1"])
    source = peer.source()
    items, iteration = await take(source, 1)
    await source.commit(last_positions(items))
    await close(source, iteration)
    await peer.connection.execute(
        "update velo_positions set position = '[0, 99999999999, 5]' where source = %s",
        [f"velo {peer.table}"],
    )
    source = peer.source()
    with pytest.raises(PositionLost, match="was restored"):
        await take(source, 1)
    await source.close()


async def test_rows_are_replaced_by_their_key(peer):
    await peer.connection.execute(
        f"create table {peer.table}_k (card text primary key, total int, more jsonb)"
    )
    sink = connect.postgres(
        peer.address, "postgres", f"{peer.table}_k", upsert=True, key="card", **peer.login
    )
    rows = [(f"c{number % 3}", {"total": number}) for number in range(1200)]
    await sink.write(rows)
    assert await peer.rows(f"select count(*) from {peer.table}_k") == [(0,)]
    await sink.flush()
    query = f"select card, total, more from {peer.table}_k order by card"
    assert await peer.rows(query) == [("c0", 1197, None), ("c1", 1198, None), ("c2", 1199, None)]
    await sink.write([("c0", {"more": {"a": [1, None]}}), ("c1", {"card": "c9"})])
    await sink.flush()
    rows = await peer.rows(query)
    assert rows[0] == ("c0", 1197, {"a": [1, None]})
    assert rows[3] == ("c9", None, None)
    await sink.close()


async def test_a_result_goes_to_the_table_that_it_names(peer):
    sink = connect.postgres(peer.address, "postgres", peer.table, **peer.login)
    await sink.write([("k", connect.to({"number": 7}, topic=f"public.{peer.out}"))])
    await sink.flush()
    assert await peer.written(1) == [b'{"number":7}']
    await sink.close()


async def test_a_row_that_does_not_fit_is_told_and_none_is_stored(peer):
    sink = peer.sink()
    with pytest.raises(ValueError, match=r"has colour, which .*; it has n, number"):
        await sink.write([("k", {"colour": "red"})])
    await sink.write([("k", {"number": 1}), ("k", {"number": "many"})])
    for _ in range(2):
        with pytest.raises(ConnectError, match="many"):
            await sink.flush()
    assert await peer.written(0) == []
    await sink.close()
    with pytest.raises(NoSuchTopic, match="missing"):
        await peer.sink().write([("k", connect.to({"a": 1}, topic="missing"))])


async def put(sink, *numbers):
    await sink.write([("k", {"number": number}) for number in numbers])
    await sink.flush()


async def test_rows_show_together_with_their_epoch(peer):
    sink = peer.sink()
    assert await sink.begin("a") == 0
    await put(sink, *range(700))  # some are sent before the flush
    assert await peer.written(0) == []
    await sink.commit(1, {("payments", 3): 17, b"\0": [1]})
    await sink.commit(2, {("payments", 3): 18})  # a tick without results
    await put(sink, 1000)
    await sink.close()  # what was not committed is gone
    assert len(await peer.written(700)) == 700
    sink = peer.sink()
    assert await sink.begin("a", 3) == 2
    await put(sink, 700)
    await sink.commit(3, {("payments", 3): 19})
    await sink.close()
    assert (await peer.written(701))[-1] == b'{"number":700}'
    query = f"select sink, epoch, positions from velo_commits where sink = 'a {peer.out}'"
    assert await peer.rows(query) == [(f"a {peer.out}", 3, "{('payments', 3): 19}")]
    other = peer.sink()
    assert await other.begin("b") == 0
    await other.close()


async def test_a_program_whose_checkpoint_goes_on_elsewhere_commits_nothing(peer):
    old, new = peer.sink(), peer.sink()
    await old.begin("a")
    await put(old, 1)
    assert await new.begin("a") == 0
    await put(new, 2)
    with pytest.raises(Superseded, match=f"another program.*a {peer.out}"):
        await old.commit(1, {})
    await new.commit(1, {})
    with pytest.raises(Superseded):
        await old.commit(1, {})
    await put(new, 3)
    await new.commit(2, {})
    await old.close()
    await new.close()
    assert await peer.written(2) == [b'{"number":2}', b'{"number":3}']


async def test_rows_that_are_in_the_way_of_a_program_that_goes_on_elsewhere_are_not_the_reason(
    peer,
):
    async def row(sink):
        await sink.write([("k", {"n": 7, "number": 1})])
        await sink.flush()

    old, new = peer.sink(), peer.sink()
    await old.begin("a")
    await new.begin("a")
    await row(new)
    await new.commit(1, {})
    with pytest.raises(Superseded, match=f"another program.*a {peer.out}") as raised:
        await row(old)
    assert isinstance(raised.value.__cause__, psycopg.errors.UniqueViolation)
    await old.close()
    # The own rows of a program are the reason.
    with pytest.raises(ConnectError, match="duplicate key") as raised:
        await row(new)
    assert not isinstance(raised.value, Superseded)
    await new.close()


async def test_the_transaction_that_a_successor_waits_for_is_named(peer, caplog, monkeypatch):
    monkeypatch.setattr("velo.connect._postgres.blocking._LOOK_AFTER", 0.05)
    row = [("k", {"n": 7, "number": 1})]
    old, new = peer.sink(upsert=True), peer.sink(upsert=True)
    await old.begin("a")
    await old.write(row)
    await old.flush()  # it stands still now, in a transaction
    await new.begin("a")
    await new.write(row)
    flushing = asyncio.ensure_future(new.flush())
    await waited(lambda: "for locks" in caplog.text)
    process = old._rows._connection.info.backend_pid
    named = f"process {process} of 'admin' ('velo: postgres {peer.out}'), open for "
    assert f"postgres {peer.out}: has waited 0.05 s for locks" in caplog.text
    assert named in caplog.text
    assert not flushing.done()
    await old.close()
    await flushing
    await new.commit(1, {})
    assert await peer.written(1) == [b'{"number":1}']
    await new.close()


async def test_no_transaction_is_named_where_a_statement_only_takes_long(peer, caplog, monkeypatch):
    from velo.connect._postgres import blocking

    monkeypatch.setattr(blocking, "_LOOK_AFTER", 0.01)
    sink, looks, find = peer.sink(), [], blocking._blockers

    async def looked(*arguments):
        looks.append(await find(*arguments))
        return looks[-1]

    monkeypatch.setattr(blocking, "_blockers", looked)
    connection = await sink._server.connect("it")
    async with blocking.naming_blockers(sink._server, connection, "it"):
        await waited(lambda: len(looks) > 1)
    assert looks[:2] == [[], []]
    assert "for locks" not in caplog.text
    await connection.close()
    await sink.close()


async def test_a_connection_that_is_lost_before_the_commit_loses_no_row(peer):
    sink = peer.sink()
    await sink.begin("a")
    await put(sink, 1, 2)
    ended = await peer.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        f"where application_name = 'velo: postgres {peer.out}'"
    )
    assert ended == [(True,)]
    await sink.commit(1, {})
    assert await peer.written(2) == [b'{"number":1}', b'{"number":2}']
    await sink.close()
    sink = peer.sink()
    assert await sink.begin("a", 1) == 1
    await sink.close()


async def test_a_database_that_does_not_know_the_checkpoint_is_named(peer):
    sink = peer.sink()
    with pytest.raises(PositionLost, match=f"'b {peer.out}'.*new checkpoint"):
        await sink.begin("b", 1)
    with pytest.raises(ValueError, match="`begin` first"):
        await peer.sink().commit(1, {})
    await sink.close()


async def test_what_a_checkpoint_has_absorbed_keeps_its_position(peer):
    """The rows come in three windows at first, and would come in one after a restart."""
    source, items = peer.source(), []
    source.seek({})
    iteration = aiter(source)
    for number in range(3):
        await peer.produce([b"%d" % (2 * number), b"%d" % (2 * number + 1)])
        async with asyncio.timeout(30):
            while len(items) < 2 * number + 2:
                items += await anext(iteration)
    await close(source, iteration)
    assert len({item.position[:2] for item in items}) == 3
    for first, absorbed in ((0, items[3:4]), (1, items[5:]), (2, items[4:5]), (0, items[2:])):
        source = peer.source()
        source.seek({peer.table: items[first].position})
        source.remember({peer.table: [item.position for item in absorbed]})
        again, iteration = await take(source, 5 - first)
        await close(source, iteration)
        assert [item.value for item in again] == [item.value for item in items[first + 1 :]]
        assert {item.position for item in again} >= {item.position for item in absorbed}
        positions = [item.position for item in again]
        assert positions == sorted(positions)


async def test_rows_that_were_handled_before_a_crash_are_deleted_after_it(peer):
    await peer.produce([b"%d" % number for number in range(6)])
    source = peer.source(delete=True)
    source.seek({})
    items, iteration = await take(source, 6)
    await source.commit(last_positions(items[:1]))
    await close(source, iteration)
    source = peer.source(delete=True)
    source.seek(last_positions(items[:3]))
    rest, iteration = await take(source, 3)
    assert [item.value for item in rest] == [3, 4, 5]
    assert await peer.rows(f"select count(*) from {peer.table}") == [(3,)]
    await source.commit(last_positions(rest))
    assert await peer.rows(f"select count(*) from {peer.table}") == [(0,)]
    await close(source, iteration)


async def test_a_checkpoint_of_another_database_is_refused(peer):
    source = peer.source()
    source.seek({peer.table: (0, 2**60, 7)})
    with pytest.raises(PositionLost, match=r"checkpoint.*has not reached.*new checkpoint"):
        await take(source, 1)
    await source.close()


async def test_a_login_is_checked_and_never_shown(peer, postgres, tmp_path):
    for login in ({}, {"user": "reader", "password": "hunter3"}, {"user": "strange"}):
        source = connect.postgres(peer.address, "postgres", peer.table, **login)
        with pytest.raises(AuthenticationFailed, match=peer.address) as refused:
            await take(source, 1)
        assert "hunter" not in str(refused.value)
        await source.close()
    (tmp_path / "password").write_text("hunter2\n")
    login = {"user": "reader", "password_file": tmp_path / "password"}
    source = connect.postgres(peer.address, "postgres", peer.table, **login)
    with pytest.raises(PermissionDenied, match="grant it to 'reader'"):
        await take(source, 1)
    assert "hunter" not in repr(source) + repr(source._server)
    await source.close()
    sink = connect.postgres(peer.address, "postgres", peer.out, **login)
    await sink.write([("k", {"number": 1})])
    with pytest.raises(PermissionDenied):
        await sink.flush()
    await sink.close()
    source = connect.postgres(peer.address, "elsewhere", "t", **peer.login)
    with pytest.raises(NoSuchTopic, match="no database 'elsewhere'"):
        await take(source, 1)
    await source.close()


async def test_tls(peer, postgres):
    with pytest.raises(Unreachable, match="certificate"):
        await peer.sink(tls=True).write([("k", {"number": 1})])
    sink = peer.sink(tls=str(postgres.certificate))
    await sink.write([("k", {"number": 1})])
    await sink.flush()
    assert await peer.written(1) == [b'{"number":1}']
    await sink.close()


async def test_a_frozen_server_is_found_by_its_silence(own_postgres):
    peer = await PostgresPeer(own_postgres).open()
    await peer.produce([b"1"])
    source, sink = (
        peer.source(request_timeout=0.5, connect_timeout=0.5),
        peer.sink(request_timeout=0.5, connect_timeout=0.5),
    )
    items, iteration = await take(source, 1)
    await sink.write([("k", {"number": 1})])
    more = asyncio.ensure_future(anext(iteration))
    own_postgres.freeze()
    try:
        flushing = asyncio.ensure_future(sink.flush())
        committing = asyncio.ensure_future(source.commit(last_positions(items)))
        await waited(lambda: source._outages._attempts and sink._rows.outages._attempts)
        with pytest.raises(Unreachable, match=r"no answer within 0\.5 s"):
            await take(peer.source(connect_timeout=0.5), 1)
        assert not any(task.done() for task in (more, flushing, committing))
    finally:
        own_postgres.thaw()
    await asyncio.wait_for(asyncio.gather(flushing, committing), 60)
    await peer.produce([b"2"])
    async with asyncio.timeout(60):
        batch = await more
        while not batch:
            batch = await anext(iteration)
    assert [item.value for item in batch] == [2]
    assert await peer.written(1) == [b'{"number":1}']
    await sink.close()
    await close(source, iteration)
    await peer.close()


async def test_the_server_is_killed_and_starts_again_under_source_and_sink(own_postgres, caplog):
    peer = await PostgresPeer(own_postgres).open()
    await peer.produce([b"1", b"2"])
    source, sink = peer.source(), peer.sink()
    items, iteration = await take(source, 2)
    await sink.write([("k", {"number": number}) for number in range(700)])  # some are sent
    own_postgres.kill()
    more = asyncio.ensure_future(anext(iteration))
    flushing = asyncio.ensure_future(sink.flush())
    committing = asyncio.ensure_future(source.commit(last_positions(items[:1])))
    await waited(lambda: caplog.text.count("lost the server") == 2)
    await asyncio.to_thread(own_postgres.start)
    await asyncio.wait_for(asyncio.gather(flushing, committing), 60)
    await peer.close()
    peer.connection = await peer.connect()
    assert await peer.written(700) == [b'{"number":%d}' % number for number in range(700)]
    await peer.produce([b"3"])
    async with asyncio.timeout(60):
        batch = await more
        while not batch:
            batch = await anext(iteration)
    assert [item.value for item in batch] == [3]  # nothing comes again within one program
    assert source.reconnects >= 1
    await close(source, iteration)
    source = peer.source()
    iteration = aiter(source)
    assert await rest(iteration, 2) == [2, 3]
    await close(source, iteration)
    await sink.close()
    await peer.close()


async def test_a_stop_does_not_wait_for_a_server_that_is_gone(own_postgres, monkeypatch):
    monkeypatch.setattr("velo.connect.settings.wait_of", lambda attempt: 3600)
    peer = await PostgresPeer(own_postgres).open()
    await peer.produce([b"1"])
    source = peer.source()
    _, iteration = await take(source, 1)
    own_postgres.kill()
    more = asyncio.ensure_future(anext(iteration))
    await waited(lambda: source._outages._attempts)
    source.stop()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(more, 30)
    await source.close()
    await peer.close()


def test_of_url():
    from velo.connect._postgres import of_url

    url = urlsplit("postgres://reader:hunt%40er2@host:1234/shop/sales.outbox")
    endpoint = of_url(url, {"start": "17.5", "upsert": "a,b", "delete": "yes"})
    assert repr(endpoint) == "postgres('host:1234/shop', 'sales.outbox')"
    assert (endpoint._server.user, endpoint._server.password) == ("reader", "hunt@er2")
    assert (endpoint._outbox._since, endpoint._rows._upsert) == (17.5, ["a", "b"])
    with pytest.raises(ValueError, match="DATABASE/TABLE"):
        of_url(urlsplit("postgres://host/outbox"), {})
    with pytest.raises(ValueError, match="no setting `colour`; it has connect_timeout, "):
        of_url(url, {"colour": "red"})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": "never"}, "start"),
        ({"until": 7}, "until"),
        ({"poll": 0}, "poll"),
        ({"password": "a", "password_file": "b"}, "not both"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.postgres("localhost", "d", "t", **settings)


@pytest.fixture
def own_postgres(tmp_path_factory):
    """A server that the test may stop."""
    from servers.postgres import Postgres

    server = Postgres(tmp_path_factory.mktemp("postgres")).start()
    yield server
    server.kill()
