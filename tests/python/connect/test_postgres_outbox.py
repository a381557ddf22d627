"""The connector of PostgreSQL as a source: an outbox table."""

import asyncio

import pytest
from conformance import close, last_positions, take
from postgres_peer import PostgresPeer, own_tables, rest  # noqa: F401

from helpers import until, until_sync
from velo import connect
from velo.connect import Bad, Record
from velo.connect._postgres.link import cut, psycopg
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost


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
    await until(lambda: source._outbox.window is not None and source.lag()[peer.table] >= 3)
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


async def test_headers_of_null_are_none_and_others_that_are_no_object_are_a_bad_record(peer):
    await peer.connection.execute(f"alter table {peer.table} alter headers type text")
    for headers in (None, "null", "[]", "7", '"a"', "{", '{"a": "\\ud800"}', '{"a": {"b": 1}}'):
        await peer.connection.execute(
            f"insert into {peer.table} (payload, headers) values ('1', %s)", [headers]
        )
    source = peer.source()
    items, iteration = await take(source, 8)
    assert [type(item) is Bad for item in items] == [False] * 2 + [True] * 5 + [False]
    assert [item.headers for item in items if isinstance(item, Record)] == [
        (),
        (),
        (("a", b'{"b": 1}'),),
    ]
    assert [item.record.value for item in items if isinstance(item, Bad)] == [b"1"] * 5
    assert "`headers` is an object of JSON, and not []" in str(items[2].error)
    await close(source, iteration)


async def test_a_payload_of_null_is_a_bad_record(peer):
    await peer.connection.execute(f"alter table {peer.table} alter payload drop not null")
    await peer.produce([None, b"1"])
    source = peer.source(decode="bytes")
    items, iteration = await take(source, 2)
    assert "`payload` is null" in str(items[0].error)
    assert items[1].value == b"1"
    await close(source, iteration)


async def test_rows_that_come_right_at_the_time_limit_are_given(peer, monkeypatch):
    await peer.produce([b"%d" % number for number in range(502)])
    source = peer.source(request_timeout=1.0)
    _, iteration = await take(source, 500)
    locker = psycopg.connect(peer.server.dsn())
    locker.execute(f"lock table {peer.table}")
    reader = source._reader.info.backend_pid

    def cut_late(connection):
        """The server answers when the limit has passed, and before the connection is ended."""
        locker.commit()
        locker.autocommit = True
        active = "select from pg_stat_activity where pid = %s and state = 'active'"
        until_sync(lambda: locker.execute(active, [reader]).fetchone() is None)
        cut(connection)

    monkeypatch.setattr("velo.connect._postgres.link.cut", cut_late)
    more = asyncio.ensure_future(anext(iteration))
    await until(lambda: locker.autocommit)
    await peer.produce([b"502"])
    assert [item.value for item in await more] == [500, 501]
    assert await rest(iteration, 1) == [502]
    await close(source, iteration)
    locker.close()


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
    await until(lambda: source._outbox.window is not None)
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
    await until(lambda: "wait for an older transaction" in caplog.text)
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
