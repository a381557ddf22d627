"""Records and results of Redis streams: groups, reading by id, layout, the sink."""

import asyncio

import pytest
from conformance import SinkConformance, SourceConformance, close, last_positions, take
from redis_peer import RedisPeer, close_clients, read_all, take_more

from helpers import HANG, until
from velo import connect
from velo.connect.errors import (
    ConnectError,
    PositionLost,
)
from velo.connect.model import Assigned, Bad


@pytest.fixture(autouse=True)
def _close_clients():
    yield
    close_clients()


@pytest.fixture
def peer(redis):
    return RedisPeer(redis)


@pytest.fixture
def by_id(redis):
    return RedisPeer(redis, group=None)


class TestByGroup(SourceConformance, SinkConformance):
    @pytest.fixture
    def peer(self, redis):
        return RedisPeer(redis)


class TestById(SourceConformance):
    @pytest.fixture
    def peer(self, redis):
        return RedisPeer(redis, group=None)


# A group.


async def test_a_commit_acknowledges_what_came_up_to_the_position(peer):
    await peer.produce([b"1", b"2", b"3"])
    source = peer.source()
    items, iteration = await take(source, 3)
    await source.commit({peer.stream: items[1].position})
    assert peer.pending() == 1
    await source.commit({peer.stream: items[1].position})
    await source.commit({peer.stream: items[2].position})
    assert peer.pending() == 0
    await close(source, iteration)


async def test_a_consumer_that_comes_back_gets_its_own_entries_first(peer):
    await peer.produce([b"1", b"2"])
    source = peer.source()
    _, iteration = await take(source, 2)
    await close(source, iteration)
    await peer.produce([b"3"])
    source = peer.source()
    items, iteration = await take(source, 3)
    assert [item.value for item in items] == [1, 2, 3]
    assert source.redelivered == 2
    await close(source, iteration)


async def test_what_a_dead_consumer_left_is_taken_over(peer):
    await peer.produce([b"1", b"2"])
    dead = peer.source(consumer="dead")
    _, iteration = await take(dead, 2)
    await close(dead, iteration)
    source = peer.source(consumer="other", claim_after=0.1)
    items, iteration = await take(source, 2)
    assert [item.value for item in items] == [1, 2]
    assert source.redelivered == 2
    await source.commit(last_positions(items))
    assert peer.pending() == 0
    await close(source, iteration)


async def test_a_consumer_that_works_for_long_keeps_its_entries(peer):
    await peer.produce([b"1"])
    source = peer.source(claim_after=0.3)
    (item,), iteration = await take(source, 1)
    idle = [0]

    def kept():
        (pending,) = peer.client.xpending_range(peer.stream, peer.group, "-", "+", 10)
        idle.append(pending["time_since_delivered"])
        assert pending["times_delivered"] == 1
        return sum(later < earlier for earlier, later in zip(idle, idle[1:], strict=False)) >= 3

    await until(kept)
    await source.commit({peer.stream: item.position})
    assert peer.pending() == 0
    await close(source, iteration)


async def test_keeping_takes_nothing_back(peer):
    """A consumer that was held up finds that another has its entry."""
    await peer.produce([b"1", b"2"])
    source = peer.source()
    items, iteration = await take(source, 2)
    peer.client.xclaim(peer.stream, peer.group, "other", 0, [items[0].position])
    await source._reader.tend()
    owners = peer.client.xpending_range(peer.stream, peer.group, "-", "+", 10)
    assert [entry["consumer"] for entry in owners] == [b"other", b"c"]
    await close(source, iteration)


async def test_two_consumers_share_a_stream(peer):
    first, second = (peer.source(consumer=name, batch=10) for name in ("a", "b"))
    await peer.produce([b"%d" % number for number in range(100)])
    seen = []

    async def read(source):
        async for batch in source:
            if not isinstance(batch, Assigned) and batch:
                seen.extend(item.value for item in batch)
                await source.commit(last_positions(batch))
            if len(seen) == 100:
                first.stop()
                second.stop()

    async with asyncio.timeout(HANG):
        await asyncio.gather(read(first), read(second))
    assert sorted(seen) == list(range(100))
    assert peer.pending() == 0
    await first.close()
    await second.close()


async def test_a_deleted_entry_is_bad_and_blocks_no_other(peer):
    await peer.produce([b"1", b"2"])
    source = peer.source()
    items, iteration = await take(source, 2)
    await close(source, iteration)
    peer.client.xdel(peer.stream, items[0].position)
    source = peer.source()
    again, iteration = await take(source, 2)
    assert isinstance(again[0], Bad)
    assert isinstance(again[0].error, PositionLost)
    assert again[0].record.position == items[0].position
    assert again[1].value == 2
    await source.commit({peer.stream: items[1].position})
    assert peer.pending() == 0
    await close(source, iteration)


async def test_a_deleted_entry_of_a_dead_consumer_is_bad_too(peer):
    await peer.produce([b"1", b"2"])
    dead = peer.source(consumer="dead")
    items, iteration = await take(dead, 2)
    await close(dead, iteration)
    peer.client.xdel(peer.stream, items[0].position)
    source = peer.source(consumer="other", claim_after=0.05)
    again, iteration = await take(source, 2)
    (bad,) = [item for item in again if isinstance(item, Bad)]
    assert bad.record.position == items[0].position
    await close(source, iteration)


@pytest.mark.parametrize("start", ["earliest", "latest", "committed"])
async def test_a_new_group_begins_at_start(peer, start):
    await peer.produce([b"1"])
    source = peer.source(start=start, group="new")
    iteration = aiter(source)
    assert await anext(iteration) == Assigned((peer.stream,))
    await peer.produce([b"2"])
    batch = await anext(iteration)
    assert [item.value for item in batch] == ([2] if start == "latest" else [1, 2])
    await close(source, iteration)


async def test_a_group_without_a_stream_makes_it_and_waits(peer):
    source = peer.source()
    iteration = aiter(source)
    await anext(iteration)
    assert peer.client.exists(peer.stream)
    await peer.produce([b"1"])
    assert [item.value for item in await anext(iteration)] == [1]
    await close(source, iteration)


async def test_rewind_sets_a_group_back(peer):
    await peer.produce([b"1", b"2"])
    for rewind, values in ((False, [1, 2]), (True, [1, 2]), (False, [])):
        source = peer.source(until="end", rewind=rewind)
        async with asyncio.timeout(HANG):
            items = [item async for batch in source if isinstance(batch, list) for item in batch]
        assert [item.value for item in items] == values
        await source.commit(last_positions(items))
        await source.close()


async def test_a_name_made_for_a_run_leaves_the_group(peer):
    await peer.produce([b"1"])
    source = peer.source(consumer=None)
    (item,), iteration = await take(source, 1)
    assert len(peer.client.xinfo_consumers(peer.stream, peer.group)) == 1
    await source.commit({peer.stream: item.position})
    await close(source, iteration)
    assert peer.client.xinfo_consumers(peer.stream, peer.group) == []


async def test_a_name_with_pending_entries_stays_in_the_group(peer):
    await peer.produce([b"1"])
    source = peer.source(consumer=None)
    _, iteration = await take(source, 1)
    await close(source, iteration)
    assert peer.pending() == 1
    (consumer,) = peer.client.xinfo_consumers(peer.stream, peer.group)
    assert consumer["pending"] == 1


async def test_a_group_that_is_deleted_is_an_error(peer):
    source = peer.source()
    iteration = aiter(source)
    await anext(iteration)
    peer.client.xgroup_destroy(peer.stream, peer.group)
    with pytest.raises(PositionLost, match="the group is not there"):
        await anext(iteration)
    await close(source, iteration)


# By id.


async def test_reading_goes_on_behind_the_position_of_the_caller(by_id):
    await by_id.produce([b"1", b"2", b"3"])
    source = by_id.source()
    items, iteration = await take(source, 3)
    await source.commit(last_positions(items))
    await close(source, iteration)
    for start in (items[0].position, {by_id.stream: items[0].position}):
        assert await read_all(by_id.source(start=start, until="end")) == [2, 3]


async def test_reading_begins_and_ends_at_a_time(by_id):
    for second in (10, 20, 30):
        by_id.client.xadd(by_id.stream, {"value": second}, id=f"{second}000-1")
    assert await read_all(by_id.source(start=20.0, until="end")) == [20, 30]
    assert await read_all(by_id.source(until=20.0)) == [10]
    assert await read_all(by_id.source(until=20.001)) == [10, 20]
    assert await read_all(by_id.source(start=20.0, until=29.0)) == [20]


async def test_latest_begins_behind_what_is_there(by_id):
    await by_id.produce([b"1"])
    source = by_id.source(start="latest")
    iteration = aiter(source)
    await anext(iteration)
    await by_id.produce([b"2"])
    assert [item.value for item in await anext(iteration)] == [2]
    await close(source, iteration)


async def test_until_end_ends_for_an_empty_and_a_missing_stream(by_id, peer):
    assert await read_all(by_id.source(until="end")) == []
    assert await read_all(peer.source(until="end")) == []


async def test_until_end_ends_in_a_group(peer):
    await peer.produce([b"1", b"2"])
    assert await read_all(peer.source(until="end")) == [1, 2]


async def test_a_stream_that_is_not_there_is_named(by_id, caplog):
    source = by_id.source()
    iteration = aiter(source)
    await anext(iteration)
    assert by_id.stream in caplog.text
    await close(source, iteration)


async def test_a_position_that_was_trimmed_away_is_an_error(by_id):
    ids = [by_id.client.xadd(by_id.stream, {"value": number}).decode() for number in range(5)]
    by_id.client.xtrim(by_id.stream, maxlen=2, approximate=False)
    with pytest.raises(PositionLost, match=ids[3]):
        await read_all(by_id.source(start=ids[0], until="end"))
    assert await read_all(by_id.source(start=ids[3], until="end")) == [4]
    assert await read_all(by_id.source(start=ids[4], until="end")) == []


async def test_entries_that_are_trimmed_while_they_wait_are_an_error(by_id):
    await by_id.produce([b"%d" % number for number in range(10)])
    source = by_id.source(batch=2)
    _, iteration = await take(source, 2)
    by_id.client.xtrim(by_id.stream, maxlen=2, approximate=False)
    with pytest.raises(PositionLost, match="deleted before they were read"):
        await anext(iteration)
    await close(source, iteration)


async def test_deleting_what_was_handled_loses_nothing(by_id):
    await by_id.produce([b"1"])
    source = by_id.source()
    items, iteration = await take(source, 1)
    by_id.client.xdel(by_id.stream, items[0].position)
    await by_id.produce([b"2"])
    async with asyncio.timeout(HANG):
        while not (batch := await anext(iteration)):
            pass
    assert [item.value for item in batch] == [2]
    await close(source, iteration)


async def test_a_stream_that_was_made_anew_is_an_error(by_id):
    await by_id.produce([b"1"])
    source = by_id.source()
    items, iteration = await take(source, 1)
    await close(source, iteration)
    by_id.client.delete(by_id.stream)
    with pytest.raises(PositionLost, match="came back without"):
        await read_all(by_id.source(start=items[0].position, until="end"))


# Several streams, pauses, the lag.


async def test_several_streams_are_partitions(redis, peer, by_id):
    await peer.produce([b"1", b"2"])
    await by_id.produce([b"3"])
    names = [peer.stream, by_id.stream]
    source = connect.redis(redis.url, names, until="end")
    async with asyncio.timeout(HANG):
        batches = [batch async for batch in source]
    assert batches[0] == Assigned(tuple(names))
    seen = {(item.partition, item.value) for batch in batches[1:] for item in batch}
    assert seen == {(peer.stream, 1), (peer.stream, 2), (by_id.stream, 3)}
    await source.close()


@pytest.mark.parametrize("group", ["g", None])
async def test_a_paused_stream_is_not_read(redis, group):
    paused, other = RedisPeer(redis), RedisPeer(redis)
    await paused.produce([b"1"])
    source = connect.redis(redis.url, [paused.stream, other.stream], group=group)
    source.pause([paused.stream])
    iteration = aiter(source)
    await anext(iteration)
    await other.produce([b"2"])
    values = []
    async with asyncio.timeout(HANG):
        while not values:
            values += [item.value for item in await anext(iteration)]
        assert values == [2]
        source.pause([other.stream])
        waiting = asyncio.ensure_future(anext(iteration))
        source.resume([paused.stream])
        assert [item.value for item in await waiting] == [1]
    await close(source, iteration)


@pytest.mark.parametrize("group", ["g", None])
async def test_the_lag_is_what_was_not_read(redis, group):
    peer = RedisPeer(redis, group)
    await peer.produce([b"%d" % number for number in range(10)])
    source = peer.source(batch=4, claim_after=0.1)
    _, iteration = await take(source, 4)
    await until(lambda: source.lag() == {peer.stream: 6})
    await take_more(iteration, 6)
    await until(lambda: source.lag() == {peer.stream: 0})
    await close(source, iteration)


@pytest.mark.parametrize("group", ["g", None])
async def test_stop_ends_the_iteration(redis, group):
    peer = RedisPeer(redis, group)
    source = peer.source()
    iteration = aiter(source)
    await anext(iteration)
    source.stop()
    async with asyncio.timeout(HANG):
        assert [batch async for batch in iteration] in ([], [[]])
    await source.close()


# Layout, sink.


async def test_fields_of_other_programs_are_read(by_id):
    by_id.client.xadd(by_id.stream, {"sensor": "a", "degrees": "20.5", "h:trace": "t"})
    source = by_id.source(field=None, key_field="sensor", decode_key="text")
    (item,), iteration = await take(source, 1)
    assert item.value == {"sensor": "a", "degrees": "20.5"}
    assert item.key == "a"
    assert item.headers == (("trace", b"t"),)
    await close(source, iteration)


async def test_an_entry_without_the_field_is_bad_and_says_so(by_id):
    by_id.client.xadd(by_id.stream, {"payload": "1"})
    source = by_id.source()
    (bad,), iteration = await take(source, 1)
    assert isinstance(bad, Bad)
    assert "`payload`" in str(bad.error)
    assert bad.record.value == b"payload=1"
    await close(source, iteration)


async def test_results_say_where_they_go(redis, peer, by_id):
    sink = peer.sink()
    to = connect.to(1, topic=by_id.stream, key="k", headers={"trace": "t"})
    await sink.write([("stream", to), (7, connect.to(2))])
    await sink.flush()
    ((_, there),) = by_id.client.xrange(by_id.stream)
    assert there == {b"value": b"1", b"key": b"k", b"h:trace": b"t"}
    ((_, here),) = peer.client.xrange(peer.stream)
    assert here == {b"value": b"2", b"key": b"7"}
    await sink.close()


async def test_fields_are_written(peer):
    sink = peer.sink(field=None)
    await sink.write([("k", {"a": 1, "b": "x", "c": [1], "d": True})])
    await sink.flush()
    ((_, fields),) = peer.client.xrange(peer.stream)
    assert fields == {b"a": b"1", b"b": b"x", b"c": b"[1]", b"d": b"true"}
    with pytest.raises(TypeError, match="dict of fields"):
        await sink.write([("k", 1)])
    await sink.close()


async def test_a_sink_of_several_streams_needs_a_name(redis):
    sink = connect.redis(redis.url, ["a", "b"])
    with pytest.raises(ValueError, match=r"connect\.to"):
        await sink.write([("k", 1)])
    await sink.close()


@pytest.mark.parametrize(
    "result",
    [
        connect.to({"n": 2}, topic="\ud800"),
        connect.to({"n": 2}, headers={"\ud800": "v"}),
        {"n": "\ud800"},
        {"\ud800": 2},
    ],
)
async def test_of_results_that_no_entry_can_carry_none_is_written(peer, result):
    sink = peer.sink(field=None)
    with pytest.raises(ValueError, match="surrogates"):
        await sink.write([("k", {"n": 1}), ("k", result)])
    await sink.write([("k", {"n": 3})])
    await sink.flush()
    assert [fields for _, fields in peer.client.xrange(peer.stream)] == [{b"n": b"3"}]
    await sink.close()


async def test_maxlen_bounds_a_stream(peer):
    sink = peer.sink(maxlen=100)
    await sink.write([("k", number) for number in range(2000)])
    await sink.flush()
    assert peer.client.xlen(peer.stream) < 400
    await sink.close()


async def test_write_sends_once_a_batch_is_there(peer):
    sink = peer.sink(batch=10)
    await sink.write([("k", number) for number in range(25)])
    assert peer.client.xlen(peer.stream) == 20
    big = peer.sink(encode="bytes")
    await big.write([("k", b"x" * 600_000)] * 2)
    assert peer.client.xlen(peer.stream) == 22
    await big.close()
    await sink.close()


async def test_a_result_that_the_server_refuses_is_an_error(peer):
    peer.client.set(peer.stream + "-text", "x")
    sink = peer.sink()
    await sink.write([("k", connect.to(1, topic=peer.stream + "-text")), ("k", 2)])
    for _ in range(2):  # and it stays one
        with pytest.raises(ConnectError, match="no stream"):
            await sink.flush()
    assert peer.client.xlen(peer.stream) == 1
    await sink.close()


async def test_a_key_that_is_no_stream_is_an_error(peer):
    peer.client.set(peer.stream, "x")
    for group in ("g", None):
        source = peer.source(group=group)
        with pytest.raises(ConnectError, match="no stream"):
            await anext(aiter(source))
        await source.close()
