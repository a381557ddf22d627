"""The connector of PostgreSQL and servers that freeze, die and come back."""

import asyncio

import pytest
from conformance import close, last_positions, take
from postgres_peer import PostgresPeer, rest

from helpers import until
from velo.connect.errors import Unreachable


@pytest.fixture
def own_postgres(tmp_path_factory):
    """A server that the test may stop."""
    from servers.postgres import Postgres

    server = Postgres(tmp_path_factory.mktemp("postgres")).start()
    yield server
    server.kill()


async def test_a_frozen_server_is_found_by_its_silence(own_postgres):
    peer = await PostgresPeer(own_postgres).open()
    await peer.produce([b"1"])
    source, sink = peer.source(request_timeout=0.5), peer.sink(request_timeout=0.5)
    items, iteration = await take(source, 1)
    await sink.write([("k", {"number": 1})])
    more = asyncio.ensure_future(anext(iteration))
    own_postgres.freeze()
    try:
        flushing = asyncio.ensure_future(sink.flush())
        committing = asyncio.ensure_future(source.commit(last_positions(items)))
        await until(lambda: source._outages._attempts and sink._rows.outages._attempts)
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
    await until(lambda: caplog.text.count("lost the server") == 2)
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
    await until(lambda: source._outages._attempts)
    source.stop()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(more, 30)
    await source.close()
    await peer.close()
