"""Records of NATS: durable and ordered consumers, and where reading begins and ends."""

import asyncio
import itertools

import pytest
from conformance import SinkConformance, SourceConformance, close, last_positions, take
from nats.js.errors import NotFoundError
from nats_peer import NatsPeer, read_all, take_more, until, values_of

from helpers import HANG
from velo import connect
from velo.connect.errors import (
    ConnectError,
    NoSuchTopic,
    PositionLost,
)
from velo.connect.model import Assigned


@pytest.fixture
async def peer(nats):
    peer = await NatsPeer(nats).open()
    yield peer
    await peer.close()


@pytest.fixture
async def ordered(nats):
    peer = await NatsPeer(nats, durable=None).open()
    yield peer
    await peer.close()


@pytest.fixture(params=["durable", "ordered"])
def either(request):
    return request.getfixturevalue({"durable": "peer", "ordered": "ordered"}[request.param])


class TestDurable(SourceConformance, SinkConformance):
    pass


class TestOrdered(SourceConformance):
    @pytest.fixture
    def peer(self, ordered):
        return ordered


# A durable consumer.


async def test_a_commit_acknowledges_what_came_up_to_the_position(peer):
    await peer.produce([b"1", b"2", b"3"])
    source = peer.source()
    items, iteration = await take(source, 3)
    await source.commit({peer.stream: items[1].position})
    assert await peer.pending() == 1
    await source.commit({peer.stream: items[1].position})
    await source.commit({peer.stream: items[2].position})
    assert await peer.pending() == 0
    assert (await peer.info()).ack_floor.stream_seq == 3
    await close(source, iteration)


async def test_many_messages_are_acknowledged(peer):
    await peer.produce([b"%d" % number for number in range(2500)])
    source = peer.source()
    items, iteration = await take(source, 2500)
    await source.commit(last_positions(items))
    assert await peer.pending() == 0
    await close(source, iteration)


async def test_what_a_dead_program_left_is_delivered_again(peer):
    await peer.produce([b"1", b"2"])
    dead = peer.source(ack_wait=0.5)
    _, iteration = await take(dead, 2)
    await iteration.aclose()
    await dead._link.close()  # without giving the messages back
    source = peer.source()
    items, iteration = await take(source, 2)
    assert sorted(values_of(items)) == [1, 2]
    assert source.redelivered == 2
    await source.commit(last_positions(items))
    assert await peer.pending() == 0
    await close(source, iteration)


async def test_closing_gives_back_what_was_not_acknowledged(peer):
    await peer.produce([b"1"])
    source = peer.source(ack_wait=10 * HANG)
    _, iteration = await take(source, 1)
    await close(source, iteration)
    source = peer.source()
    items, iteration = await take(source, 1)
    assert values_of(items) == [1]
    await close(source, iteration)


async def test_a_program_that_works_for_long_keeps_its_messages(peer):
    await peer.produce([b"1"])
    source = peer.source(ack_wait=HANG)
    source._tend_every = 0.01
    (item,), iteration = await take(source, 1)
    (token,) = source._reader._consumers[peer.stream]._receipts.of(peer.stream).values()
    progress = []

    async def seen(message):
        if message.data == b"+WPI":
            progress.append(message.subject)

    watching = await peer.client.subscribe(f"$JS.ACK.{peer.stream}.>", cb=seen)
    await peer.client.flush()
    for count in (1, 2, 3):
        token[1] -= HANG  # as if the program had worked since then
        async with asyncio.timeout(HANG):
            while len(progress) < count:
                await asyncio.sleep(0.01)
    assert progress == [token[0]] * 3
    assert (await peer.info()).num_redelivered == 0
    await source.commit({peer.stream: item.position})
    assert await peer.pending() == 0
    await watching.unsubscribe()
    await close(source, iteration)


async def test_a_message_that_comes_twice_is_given_once(peer):
    await peer.produce([b"1"])
    source = peer.source(ack_wait=10.0)
    (item,), iteration = await take(source, 1)
    # The server is told to deliver again what this program still works on.
    reply = source._reader._consumers[peer.stream]._receipts.of(peer.stream)[1][0]
    await peer.client.publish(reply, b"-NAK")
    await peer.produce([b"2"])
    assert values_of(await take_more(iteration, 1)) == [2]

    async def again():
        return (await peer.info()).num_redelivered >= 1

    await until(again)
    assert await anext(iteration) == []
    await source.commit({peer.stream: item.position})
    assert await peer.pending() == 1
    await close(source, iteration)


async def test_programs_with_one_consumer_share_its_messages(peer):
    first, second = (peer.source(batch=10) for _ in range(2))
    await peer.produce([b"%d" % number for number in range(100)])
    seen = []

    async def read(source):
        async for batch in source:
            if not isinstance(batch, Assigned) and batch:
                seen.extend(values_of(batch))
                await source.commit(last_positions(batch))
            if len(seen) == 100:
                first.stop()
                second.stop()

    async with asyncio.timeout(HANG):
        await asyncio.gather(read(first), read(second))
    assert sorted(seen) == list(range(100))
    assert await peer.pending() == 0
    await first.close()
    await second.close()


async def test_rewind_makes_the_consumer_anew(peer):
    await peer.produce([b"1", b"2"])
    for rewind, values in ((False, [1, 2]), (True, [1, 2]), (False, [])):
        source = peer.source(until="end", rewind=rewind)
        async with asyncio.timeout(HANG):
            items = [item async for batch in source if isinstance(batch, list) for item in batch]
        assert values_of(items) == values
        await source.commit(last_positions(items))
        await source.close()


async def test_until_end_waits_for_what_another_program_left(peer):
    await peer.produce([b"1", b"2"])
    dead = peer.source(ack_wait=0.5)
    _, iteration = await take(dead, 2)
    await iteration.aclose()
    await dead._link.close()
    assert sorted(await read_all(peer.source(until="end"))) == [1, 2]


async def test_messages_behind_the_end_stay_for_the_next_run(peer):
    await peer.produce([b"1", b"2"])
    source = peer.source(until="end", batch=1)
    iteration = aiter(source)
    await anext(iteration)
    await peer.produce([b"3"])
    async with asyncio.timeout(HANG):
        items = [item async for batch in iteration for item in batch]
    assert values_of(items) == [1, 2]
    await source.commit(last_positions(items))
    await source.close()
    source = peer.source()
    items, iteration = await take(source, 1)
    assert values_of(items) == [3]
    await close(source, iteration)


async def test_until_end_ends_while_messages_come_behind_the_end(peer):
    """A request brings many messages, also of those behind the end."""
    await peer.produce([b"%d" % number for number in range(10)])
    source = peer.source(until="end")
    iteration = aiter(source)
    await anext(iteration)
    await peer.produce([b"%d" % number for number in range(10, 30)])
    async with asyncio.timeout(HANG):
        items = [item async for batch in iteration for item in batch]
    assert values_of(items) == list(range(10))
    await source.commit(last_positions(items))
    await source.close()
    source = peer.source()
    items, iteration = await take(source, 20)
    assert values_of(items) == list(range(10, 30))
    await close(source, iteration)


async def test_until_end_waits_for_what_others_left_and_keeps_what_is_behind_the_end(peer):
    await peer.produce([b"1", b"2"])
    dead = peer.source(ack_wait=1.0)
    _, iteration = await take(dead, 2)
    await iteration.aclose()
    await dead._link.close()
    source = peer.source(until="end")
    iteration = aiter(source)
    await anext(iteration)
    await peer.produce([b"3", b"4"])
    async with asyncio.timeout(HANG):
        items = [item async for batch in iteration for item in batch]
    assert sorted(values_of(items)) == [1, 2]
    await source.commit(last_positions(items))
    await source.close()
    # Each of them may have come and have been put off more than once.
    assert sorted(await read_all(peer.source(until="end"))) == [3, 4]


async def produce_on(peer):
    """Produce messages, one after the other."""
    for number in itertools.count(1000):
        await peer.produce([b"%d" % number])
        await asyncio.sleep(0.01)


async def test_two_programs_with_an_end_share_a_consumer_while_messages_come(peer):
    """Neither waits for what the other one has of the messages behind the end."""
    await peer.produce([b"%d" % number for number in range(20)])
    sources = [peer.source(until="end", batch=5) for _ in range(2)]
    iterations = [aiter(source) for source in sources]
    for iteration in iterations:
        await anext(iteration)
    await peer.produce([b"%d" % number for number in range(100, 300)])
    producing = asyncio.create_task(produce_on(peer))
    seen = []

    async def read(source, iteration):
        async for batch in iteration:
            seen.extend(values_of(batch))
            if batch:
                await source.commit(last_positions(batch))
            await asyncio.sleep(0)  # the other one has its turn

    try:
        async with asyncio.timeout(HANG):
            await asyncio.gather(*map(read, sources, iterations))
    finally:
        producing.cancel()
    assert sorted(seen) == list(range(20))
    for source in sources:
        await source.close()
    assert set(range(100, 300)) <= set(await read_all(peer.source(until="end")))


async def test_others_get_what_is_behind_the_end_while_a_program_waits(peer):
    """Also while these work on it for long, the program ends once all up to its end is done."""
    await peer.produce([b"0", b"1", b"2"])
    slow = peer.source(batch=1)
    held, slowly = await take(slow, 1)
    source = peer.source(until="end")
    iteration = aiter(source)
    await anext(iteration)
    await peer.produce([b"%d" % number for number in range(3, 100)])
    items = await take_more(iteration, 2)
    await source.commit(last_positions(items))
    waiting = asyncio.create_task(take_rest(iteration))
    other = peer.source()
    behind, reading = await take(other, 97)
    assert sorted(values_of(behind)) == list(range(3, 100))
    assert not waiting.done()
    await slow.commit(last_positions(held))
    async with asyncio.timeout(HANG):
        assert await waiting == []
    assert values_of(held + items) == [0, 1, 2]
    assert await peer.pending() == 97
    await close(slow, slowly)
    await close(other, reading)
    await source.close()


async def take_rest(iteration):
    return [item async for batch in iteration for item in batch]


async def test_waiting_at_the_end_costs_no_message_its_last_delivery(peer):
    await peer.js.add_consumer(
        peer.stream, durable_name=peer.durable, filter_subject=peer.subject,
        ack_policy="explicit", ack_wait=HANG, max_deliver=2,
    )  # fmt: skip
    await peer.produce([b"1"])
    dead = peer.source()
    _, iteration = await take(dead, 1)
    ((reply, _),) = dead._reader._consumers[peer.stream]._receipts.of(peer.stream).values()
    await iteration.aclose()
    await dead._link.close()  # without giving the message back
    source = peer.source(until="end")
    iteration = aiter(source)
    await anext(iteration)
    await peer.produce([b"2", b"3"])
    waiting = asyncio.create_task(take_rest(iteration))

    async def seen():
        return source._reader._consumers[peer.stream]._kept

    await until(seen)
    await peer.client.publish(reply, b"-NAK")  # as the server does after `ack_wait`
    async with asyncio.timeout(HANG):
        items = await waiting
    assert values_of(items) == [1]
    await source.commit(last_positions(items))
    await source.close()
    assert await read_all(peer.source(until="end")) == [2, 3]


async def test_a_consumer_that_is_deleted_is_an_error(peer):
    source = peer.source()
    iteration = aiter(source)
    await anext(iteration)
    assert await anext(iteration) == []
    await peer.js.delete_consumer(peer.stream, peer.durable)
    with pytest.raises(PositionLost, match=f"`{peer.durable}`"):
        await take_more(iteration, 1)
    await close(source, iteration)


async def test_a_consumer_of_another_kind_is_refused(peer):
    await peer.js.add_consumer(peer.stream, durable_name="other", filter_subject=f"{peer.stream}.b")
    await peer.js.add_consumer(
        peer.stream, durable_name="push", deliver_subject="x", ack_policy="explicit"
    )
    for durable, match in (("other", "consumer rm"), ("push", "no pull consumer")):
        source = peer.source(durable=durable)
        with pytest.raises(ConnectError, match=match):
            await anext(aiter(source))
        await source.close()


async def test_a_consumer_that_the_user_has_made_is_used(peer):
    await peer.produce([b"1", b"2"])
    await peer.js.add_consumer(
        peer.stream, durable_name="mine", ack_policy="explicit", opt_start_seq=2,
        deliver_policy="by_start_sequence",
    )  # fmt: skip
    source = connect.nats(peer.server.url, f"{peer.stream}.>", durable="mine")
    items, iteration = await take(source, 1)
    assert values_of(items) == [2]
    await close(source, iteration)


# An ordered consumer.


async def test_reading_goes_on_behind_the_position_of_the_caller(ordered):
    await ordered.produce([b"1", b"2", b"3"])
    source = ordered.source()
    items, iteration = await take(source, 3)
    await source.commit(last_positions(items))
    await close(source, iteration)
    start = {ordered.stream: items[0].position}
    assert await read_all(ordered.source(start=start, until="end")) == [2, 3]
    with pytest.raises(NotFoundError):  # nothing is left on the server
        await ordered.js.consumer_info(
            ordered.stream, source._reader._consumers[ordered.stream]._consumer
        )


async def test_an_ordered_consumer_that_is_gone_is_made_again(ordered):
    await ordered.produce([b"1", b"2", b"3"])
    source = ordered.source(batch=2)
    items, iteration = await take(source, 2)
    consumer = source._reader._consumers[ordered.stream]._consumer
    await ordered.js.delete_consumer(ordered.stream, consumer)
    assert values_of(await take_more(iteration, 1)) == [3]
    await close(source, iteration)


async def test_a_gap_in_the_messages_of_a_consumer_is_read_again(ordered):
    await ordered.produce([b"1", b"2", b"3", b"4"])
    source = ordered.source(batch=1)
    _, iteration = await take(source, 1)
    # Another request of the same consumer takes a message, as a lost one is missing.
    consumer = source._reader._consumers[ordered.stream]._consumer
    subscription = await ordered.js.pull_subscribe_bind(consumer, ordered.stream)
    assert [message.data for message in await subscription.fetch(1)] == [b"2"]
    assert values_of(await take_more(iteration, 3)) == [2, 3, 4]
    await close(source, iteration)


async def test_a_position_that_was_deleted_is_an_error(ordered):
    await ordered.produce([b"%d" % number for number in range(1, 6)])
    await ordered.js.purge_stream(ordered.stream, seq=4)
    for position, match in ((1, "first message is 4"), (9, "behind its last message 5")):
        with pytest.raises(PositionLost, match=match):
            await read_all(ordered.source(start={ordered.stream: position}, until="end"))
    start = {ordered.stream: 3}
    assert await read_all(ordered.source(start=start, until="end")) == [4, 5]


async def test_messages_that_are_deleted_while_they_wait_are_an_error(ordered):
    await ordered.produce([b"%d" % number for number in range(10)])
    source = connect.nats(ordered.server.url, f"{ordered.stream}.>", batch=2)
    _, iteration = await take(source, 2)
    await ordered.js.purge_stream(ordered.stream, seq=8)
    with pytest.raises(PositionLost, match="deleted before they were read"):
        await take_more(iteration, 3)
    await close(source, iteration)


# Where to begin and to end, streams, pauses, the lag.


@pytest.mark.parametrize("start", ["earliest", "latest", "committed"])
async def test_reading_begins_at_start(either, start):
    await either.produce([b"1"])
    source = either.source(start=start)
    iteration = aiter(source)
    assert await anext(iteration) == Assigned((either.stream,))
    await either.produce([b"2"])
    expected = [2] if start == "latest" else [1, 2]
    assert values_of(await take_more(iteration, len(expected))) == expected
    await close(source, iteration)


async def test_reading_begins_and_ends_at_a_time(either):
    await either.produce([b"1", b"2", b"3"])
    times = [message.time.timestamp() for message in await either.messages(3)]
    assert times == sorted(set(times))
    assert await read_all(either.source(start=times[1] - 1e-6, until="end")) == [2, 3]
    assert await read_all(either.source(until=times[1], durable=None)) == [1]
    assert await read_all(either.source(until=times[2] - 1e-6, durable=None)) == [1, 2]


async def test_until_end_ends_for_an_empty_stream(either):
    assert await read_all(either.source(until="end")) == []


async def test_until_end_ends_where_other_subjects_go_on(either):
    await either.produce([b"1", b"2"])
    await either.produce([b"3"], subject=f"{either.stream}.other")
    assert await read_all(either.source(until="end")) == [1, 2]


@pytest.mark.parametrize("durable", ["d", None])
async def test_wildcards_and_several_streams_are_read(nats, peer, durable):
    other = await NatsPeer(nats).open()
    await peer.produce([b"1"])
    await peer.produce([b"2"], subject=f"{peer.stream}.b.c")
    await other.produce([b"3"])
    subjects = [f"{peer.stream}.>", f"{other.stream}.*"]
    source = connect.nats(nats.url, subjects, durable=durable, until="end")
    async with asyncio.timeout(HANG):
        batches = [batch async for batch in source]
    assert set(batches[0].partitions) == {peer.stream, other.stream}
    items = [item for batch in batches[1:] for item in batch]
    assert {(item.partition, item.topic, item.key, item.value) for item in items} == {
        (peer.stream, f"{peer.stream}.a", f"{peer.stream}.a", 1),
        (peer.stream, f"{peer.stream}.b.c", f"{peer.stream}.b.c", 2),
        (other.stream, f"{other.stream}.a", f"{other.stream}.a", 3),
    }
    await source.commit(last_positions(items))
    await source.close()
    await other.close()


async def test_several_subjects_of_one_stream_are_one_consumer(peer):
    await peer.produce([b"1"])
    await peer.produce([b"2"], subject=f"{peer.stream}.b")
    await peer.produce([b"3"], subject=f"{peer.stream}.c")
    subjects = [f"{peer.stream}.a", f"{peer.stream}.c"]
    source = connect.nats(peer.server.url, subjects, durable="two", until="end")
    assert await read_all(source) == [1, 3]


@pytest.mark.parametrize("durable", ["d", None])
async def test_a_paused_stream_is_not_read(nats, peer, durable):
    other = await NatsPeer(nats).open()
    await peer.produce([b"1"])
    source = connect.nats(nats.url, [f"{peer.stream}.a", other.subject], durable=durable)
    source.pause([peer.stream])
    iteration = aiter(source)
    await anext(iteration)
    await other.produce([b"2"])
    assert values_of(await take_more(iteration, 1)) == [2]
    source.pause([other.stream])
    waiting = asyncio.ensure_future(take_more(iteration, 1))
    source.resume([peer.stream])
    assert values_of(await waiting) == [1]
    await close(source, iteration)
    await other.close()


async def test_the_lag_is_what_was_not_read(either):
    await either.produce([b"%d" % number for number in range(10)])
    source = either.source(batch=4, ack_wait=0.4)
    _, iteration = await take(source, 4)
    assert source.lag() == {either.stream: 6}
    await either.produce([b"10"])

    async def lag():
        return source.lag() == {either.stream: 7}

    await until(lag)
    await take_more(iteration, 7)
    assert source.lag() == {either.stream: 0}
    await close(source, iteration)


async def test_stop_ends_the_iteration(either):
    source = either.source()
    iteration = aiter(source)
    await anext(iteration)
    source.stop()
    async with asyncio.timeout(HANG):
        assert [batch async for batch in iteration] in ([], [[]])
    await source.close()


async def test_a_missing_stream_is_named_with_the_command_that_makes_it(nats, peer):
    for settings, match in (
        ({}, r"nats stream add NAME --subjects 'no\.where'"),
        ({"stream": "NOWHERE"}, r"nats stream add NOWHERE --subjects 'no\.where'"),
    ):
        source = connect.nats(nats.url, "no.where", durable="d", **settings)
        with pytest.raises(NoSuchTopic, match=match):
            await anext(aiter(source))
        await source.close()
    sink = connect.nats(nats.url, "no.where")
    await sink.write([("k", 1)])
    with pytest.raises(NoSuchTopic, match=r"nats stream add NAME --subjects 'no\.where'"):
        await sink.flush()
    await sink.close()
