"""The connector of PostgreSQL as a sink: rows of tables, in transactions."""

import asyncio

import pytest
from postgres_peer import own_tables  # noqa: F401

from helpers import until
from velo import connect
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost, Superseded

psycopg = pytest.importorskip("psycopg")


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
    await until(lambda: "for locks" in caplog.text)
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
        await until(lambda: len(looks) > 1)
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
