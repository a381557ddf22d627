import asyncio
import contextlib
import json
import logging
import uuid
from urllib.parse import urlsplit

import nats as client_library
import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, last_positions, take
from nats.js.errors import NotFoundError

from helpers import HANG
from killed import move, move_and_kill
from servers.certificates import certificate
from servers.nats import Nats
from velo import connect
from velo.connect import _nats
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    PositionLost,
    Unreachable,
)
from velo.connect.model import Assigned


class NatsPeer(Peer):
    """A stream of its own, which has the subjects `NAME.>`."""

    stable = True

    def __init__(self, server, durable="d", stream=None):
        self.server = server
        self.stream = stream or f"s{uuid.uuid4().hex}"
        self.subject = f"{self.stream}.a"
        self.durable = durable
        self.commits = durable is not None
        self.seeks = durable is None
        self.client = None

    async def open(self, **settings):
        self.client = await client_library.connect(self.server.url)
        self.js = self.client.jetstream()
        await self.js.add_stream(name=self.stream, subjects=[f"{self.stream}.>"], **settings)
        return self

    async def close(self):
        await self.client.close()

    async def produce(self, values, key=None, headers=(), subject=None):
        named = dict(headers)
        if key is not None:
            named["Key"] = key
        named = {name: v.decode() if isinstance(v, bytes) else v for name, v in named.items()}
        for value in values:
            await self.client.publish(subject or self.subject, value, headers=named or None)
        await self.js.stream_info(self.stream)  # all are there, as the connection keeps their order

    async def messages(self, count):
        async with asyncio.timeout(HANG):
            while (await self.js.stream_info(self.stream)).state.messages < count:
                await asyncio.sleep(0.01)
        state = (await self.js.stream_info(self.stream)).state
        return [
            await self.js.get_msg(self.stream, sequence)
            for sequence in range(state.first_seq, state.last_seq + 1)
        ]

    async def written(self, count):
        return [message.data for message in await self.messages(count)]

    def source(self, **settings):
        if self.durable:
            settings = {"durable": self.durable, **settings}
        return self.sink(**settings)

    def sink(self, **settings):
        return connect.nats(self.server.url, self.subject, **settings)

    def source_of_nothing(self):
        return connect.nats("nats://127.0.0.1:1", self.subject, connect_timeout=0.3)

    async def info(self):
        return await self.js.consumer_info(self.stream, self.durable)

    async def pending(self):
        return (await self.info()).num_ack_pending


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


@pytest.fixture
def own(tmp_path):
    """A server that the test may stop and freeze."""
    server = Nats(tmp_path / "nats").start()
    yield server
    if server.process is not None:
        server.thaw()
    server.stop()


class TestDurable(SourceConformance, SinkConformance):
    pass


class TestOrdered(SourceConformance):
    @pytest.fixture
    def peer(self, ordered):
        return ordered


async def read_all(source):
    """The values of a source that ends."""
    async with asyncio.timeout(HANG):
        batches = [batch async for batch in source if not isinstance(batch, Assigned)]
    await source.close()
    return [item.value for batch in batches for item in batch]


async def take_more(iteration, count):
    items = []
    async with asyncio.timeout(HANG):
        while len(items) < count:
            items += await anext(iteration)
    return items


def values_of(items):
    return [item.value for item in items]


async def until(condition):
    async with asyncio.timeout(HANG):
        while not await condition():
            await asyncio.sleep(0.01)


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
    source = peer.source(ack_wait=0.4)
    (item,), iteration = await take(source, 1)
    progress = []

    async def seen(message):
        progress.append(message.data)

    watching = await peer.client.subscribe(f"$JS.ACK.{peer.stream}.>", cb=seen)
    await peer.client.flush()

    async def kept():
        return progress.count(b"+WPI") >= 3

    await until(kept)
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


# Results.


async def test_results_say_where_they_go(peer):
    sink = peer.sink()
    to = connect.to(1, topic=f"{peer.stream}.b", key="k", headers={"trace": "t"})
    await sink.write([("stream", to), (7, connect.to(2))])
    await sink.flush()
    there, here = await peer.messages(2)
    assert (there.subject, there.data) == (f"{peer.stream}.b", b"1")
    assert (there.headers["Key"], there.headers["trace"]) == ("k", "t")
    assert (here.subject, here.data, here.headers["Key"]) == (peer.subject, b"2", "7")
    await sink.close()


async def test_ids_drop_duplicates(peer):
    sink = peer.sink(message_id=lambda result: result["id"])
    await sink.write([("k", {"id": "a"}), ("k", {"id": "a"}), ("k", {"id": "b"})])
    headers = {"Nats-Msg-Id": "c"}
    await sink.write([("k", connect.to({"id": "d"}, headers=headers))] * 2)
    await sink.flush()
    messages = await peer.messages(3)
    assert [message.headers["Nats-Msg-Id"] for message in messages] == ["a", "b", "c"]
    plain = peer.sink()
    await plain.write([("k", 1), ("k", 1)])
    await plain.flush()
    assert len(await peer.messages(5)) == 5
    await sink.close()
    await plain.close()


async def test_few_results_are_in_flight(peer):
    sink = peer.sink(in_flight=10)
    await sink.write([("k", number) for number in range(100)])
    assert len(sink._writer._results) <= 10
    await sink.flush()
    assert await peer.written(100) == [b"%d" % number for number in range(100)]
    await sink.close()


async def test_a_result_that_the_server_refuses_is_an_error(nats):
    peer = await NatsPeer(nats).open(max_msgs=1, discard="new")
    sink = peer.sink(write_timeout=0.3)
    await sink.write([("k", 1), ("k", 2)])
    with pytest.raises(ConnectError, match="maximum messages exceeded"):
        await sink.flush()
    await peer.js.purge_stream(peer.stream)
    await sink.flush()
    assert await peer.written(1) == [b"2"]
    await sink.close()
    await peer.close()


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (connect.to(1, topic="a.*"), "no subject to publish to"),
        (connect.to(1, topic="a b"), "no subject to publish to"),
        (connect.to(1, headers={"h": "a\nb"}), "one line of text"),
        (connect.to(1, headers={"h": b"\xff"}), "one line of text"),
        (connect.to(1, key=b"\xff"), "key_header"),
    ],
)
async def test_a_result_that_no_message_can_carry_is_an_error(peer, result, match):
    sink = peer.sink()
    with pytest.raises(ValueError, match=match):
        await sink.write([("k", 0), ("k", result)])
    await sink.flush()
    assert (await peer.js.stream_info(peer.stream)).state.messages == 0
    await sink.close()


async def test_a_result_that_is_too_large_is_named(peer):
    sink = peer.sink(encode="bytes")
    with pytest.raises(ConnectError, match="1048577 bytes"):
        await sink.write([("k", b"x" * 1_048_577)])
    await sink.close()


async def test_a_sink_of_several_subjects_needs_a_name(nats):
    sink = connect.nats(nats.url, ["a", "b"])
    with pytest.raises(ValueError, match=r"connect\.to"):
        await sink.write([("k", 1)])
    await sink.close()


# Core NATS.


async def test_core_nats_is_read_and_written(nats):
    subject = f"c{uuid.uuid4().hex}"
    source = connect.nats(nats.url, f"{subject}.*", jetstream=False)
    sink = connect.nats(nats.url, f"{subject}.a", jetstream=False)
    iteration = aiter(source)
    assert await anext(iteration) == Assigned((f"{subject}.*",))
    await sink.write([("k", 1), ("k", connect.to(2, topic=f"{subject}.b"))])
    await sink.flush()
    items = await take_more(iteration, 2)
    assert [(item.value, item.key, item.topic, item.position) for item in items] == [
        (1, "k", f"{subject}.a", 1),
        (2, "k", f"{subject}.b", 2),
    ]
    await source.commit(last_positions(items))
    await sink.close()
    await close(source, iteration)


async def test_a_queue_group_of_core_nats_shares_the_messages(nats, peer):
    subject = f"c{uuid.uuid4().hex}"
    sources = [connect.nats(nats.url, subject, jetstream=False, queue="q") for _ in range(2)]
    iterations = [aiter(source) for source in sources]
    for iteration in iterations:
        await anext(iteration)
    for number in range(100):
        await peer.client.publish(subject, b"%d" % number)
    seen = []
    async with asyncio.timeout(HANG):
        while len(seen) < 100:
            for iteration in iterations:
                seen += values_of(await anext(iteration))
    assert sorted(seen) == list(range(100))
    for source, iteration in zip(sources, iterations, strict=True):
        await close(source, iteration)


async def test_what_core_nats_drops_is_counted_and_logged(nats, peer, caplog):
    subject = f"c{uuid.uuid4().hex}"
    source = connect.nats(nats.url, subject, jetstream=False, buffer=5)
    iteration = aiter(source)
    await anext(iteration)
    for number in range(20):
        await peer.client.publish(subject, b"%d" % number)

    async def dropped():
        return source.dropped == 15

    await until(dropped)
    assert values_of(await take_more(iteration, 5)) == list(range(5))
    assert caplog.text.count("drops messages") == 1
    await close(source, iteration)


# The server goes away.


@pytest.mark.parametrize("durable", ["d", None])
async def test_a_restart_of_the_server_loses_nothing(own, durable, caplog):
    caplog.set_level(logging.WARNING, "velo.connect")
    peer = await NatsPeer(own, durable).open()
    await peer.produce([b"%d" % number for number in range(10)])
    source = peer.source(batch=5, ack_wait=2.0)
    items, iteration = await take(source, 5)
    await asyncio.to_thread(own.kill)
    reading = asyncio.ensure_future(take_more(iteration, 10))

    async def lost():
        return "lost the server" in caplog.text

    await until(lost)
    await asyncio.to_thread(own.start)
    await until_connected(peer)
    for number in range(10, 15):
        await peer.js.publish(peer.subject, b"%d" % number)
    more = await reading
    assert sorted(values_of(items + more)) == list(range(15))
    assert source.reconnects == 1
    await source.commit(last_positions(items + more))
    if durable:
        assert await peer.pending() == 0
    assert caplog.text.count("lost the server") == 1
    assert str(own.port) in caplog.text
    await close(source, iteration)
    await peer.close()


async def until_connected(peer):
    async def answered():
        with contextlib.suppress(Exception):
            await peer.js.stream_info(peer.stream)
            return True

    await until(answered)


@pytest.mark.parametrize("durable", ["d", None])
async def test_a_server_that_freezes_is_waited_for(own, durable):
    peer = await NatsPeer(own, durable).open()
    await peer.produce([b"1"])
    source = peer.source(keepalive=0.1, ack_wait=2.0)
    _, iteration = await take(source, 1)
    own.freeze()
    reading = asyncio.ensure_future(take_more(iteration, 1))

    async def lost():
        return source._link.outages._attempts > 0

    await until(lost)
    own.thaw()
    await until_connected(peer)
    await peer.js.publish(peer.subject, b"2")
    assert values_of(await reading) == [2]
    await close(source, iteration)
    await peer.close()


async def test_a_stream_that_is_deleted_is_an_error(either):
    await either.produce([b"1"])
    source = either.source(ack_wait=0.4)
    _, iteration = await take(source, 1)
    await either.js.delete_stream(either.stream)
    with pytest.raises(PositionLost, match="deleted"):
        await take_more(iteration, 1)
    await close(source, iteration)


async def test_a_program_that_is_killed_loses_nothing(nats):
    """Every result is there, and each key's results come in order, apart from those doubled."""
    peer, out = await NatsPeer(nats).open(), await NatsPeer(nats).open()
    await peer.produce([b'{"k":%d,"n":%d}' % (number % 7, number) for number in range(10_000)])
    source = f"{nats.url}/{peer.subject}?durable=d&batch=100&ack_wait=1"
    sink = f"{nats.url}/{out.subject}?in_flight=50"

    async def count():
        return (await out.js.stream_info(out.stream)).state.messages

    await move_and_kill(source, sink, count, 300)
    moved = await count()
    await move_and_kill(source, sink, count, moved + 300)
    assert await count() < 10_000
    await move(f"{source}&until=end", sink)
    numbers = [json.loads(value)["n"] for value in await out.written(10_000)]
    assert set(numbers) == set(range(10_000))
    assert await peer.pending() == 0
    await peer.close()
    await out.close()


async def test_a_sink_publishes_again_after_a_restart_without_doubles(own):
    peer = await NatsPeer(own).open()
    sink = peer.sink()
    await sink.write([("k", 0)])
    await sink.flush()
    own.freeze()  # what is written now has no answer
    writing = asyncio.ensure_future(sink.write([("k", number) for number in range(1, 100)]))
    await writing
    own.thaw()
    await asyncio.to_thread(own.kill)
    await asyncio.to_thread(own.start)
    await sink.write([("k", 100)])
    await sink.flush()
    await until_connected(peer)
    assert await peer.written(101) == [b"%d" % number for number in range(101)]
    await sink.close()
    await peer.close()


async def test_a_sink_gives_up_in_time_and_keeps_its_results(own):
    peer = await NatsPeer(own).open()
    sink = peer.sink(write_timeout=0.3)
    await sink.write([("k", 1)])
    await sink.flush()
    await asyncio.to_thread(own.kill)
    await sink.write([("k", 2)])
    with pytest.raises(Unreachable, match=str(own.port)):
        await sink.flush()
    await asyncio.to_thread(own.start)
    await until_connected(peer)
    async with asyncio.timeout(HANG):
        while True:
            with contextlib.suppress(Unreachable):
                await sink.flush()
                break
    assert await peer.written(2) == [b"1", b"2"]
    await sink.close()
    await peer.close()


# Users, TLS, addresses.

USERS = """
authorization {
  users: [
    { user: bob, password: hunter2 }
    { user: eve, password: x, permissions: { publish: "_INBOX.>", subscribe: "_INBOX.>" } }
  ]
}
"""


async def test_a_wrong_password_is_named_and_not_shown(tmp_path, monkeypatch):
    server = Nats(tmp_path / "nats", USERS).start()
    address = f"127.0.0.1:{server.port}"
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    core = {"jetstream": False, "until": "end"}
    try:
        for settings in ({}, {"user": "bob", "password": "hunter3"}, {"token": "hunter3"}):
            source = connect.nats(address, "s", **settings)
            with pytest.raises(AuthenticationFailed, match=address) as caught:
                await anext(aiter(source))
            assert "hunter" not in str(caught.value)
            await source.close()
        for url, settings in (
            (address, {"user": "bob", "password_file": str(file)}),
            (f"nats://bob:hunter2@{address}", {}),
        ):
            source = connect.nats(url, "s", **core, **settings)
            assert "hunter2" not in f"{source!r} {source.name}"
            assert await read_all(source) == []
        monkeypatch.setenv("NATS_USER", "bob")
        monkeypatch.setenv("NATS_PASSWORD", "hunter2")
        assert await read_all(connect.nats(address, "s", **core)) == []
    finally:
        server.stop()


async def test_a_user_without_the_right_is_refused(tmp_path):
    server = Nats(tmp_path / "nats", USERS).start()
    login = {"user": "eve", "password": "x"}
    try:
        for settings in ({"durable": "d"}, {"jetstream": False}):
            source = connect.nats(server.url, "s", **login, **settings)
            with pytest.raises(PermissionDenied, match="`eve`"):
                iteration = aiter(source)
                while True:
                    await anext(iteration)
            await source.close()
        sink = connect.nats(server.url, "s", **login)
        await sink.write([("k", 1)])
        with pytest.raises(PermissionDenied, match="`eve`"):
            await sink.flush()
        await sink.close()
    finally:
        server.stop()


async def test_a_password_that_is_no_longer_good_is_an_error(tmp_path):
    server = Nats(tmp_path / "nats", USERS).start()
    try:
        source = connect.nats(server.url, "s", user="bob", password="hunter2", jetstream=False)
        iteration = aiter(source)
        await anext(iteration)
        await asyncio.to_thread(server.kill)
        server.settings = USERS.replace("hunter2", "other")
        await asyncio.to_thread(server.start)
        with pytest.raises(AuthenticationFailed):
            await take_more(iteration, 1)
        await close(source, iteration)
    finally:
        server.stop()


async def test_a_server_without_jetstream_is_named(tmp_path):
    server = Nats(tmp_path / "nats", jetstream=False).start()
    try:
        source = connect.nats(server.url, "s", durable="d")
        with pytest.raises(ConnectError, match="nats-server -js"):
            await anext(aiter(source))
        await source.close()
    finally:
        server.stop()


async def test_tls_checks_the_certificate(tmp_path, nats):
    cert, key = certificate(tmp_path)
    server = Nats(tmp_path / "nats", f'tls {{ cert_file: "{cert}", key_file: "{key}" }}').start()
    core = {"jetstream": False, "until": "end"}
    try:
        for url in (server.url, server.url.replace("nats", "tls")):
            assert await read_all(connect.nats(url, "s", tls_ca=str(cert), **core)) == []
            source = connect.nats(url, "s", **core)
            with pytest.raises(Unreachable, match="TLS"):
                await anext(aiter(source))
            await source.close()
        # A server without TLS does not get the password.
        source = connect.nats(nats.url, "s", user="bob", password="hunter2", tls=True)
        with pytest.raises(Unreachable, match="TLS"):
            await anext(aiter(source))
        await source.close()
    finally:
        server.stop()


async def test_a_url_has_the_settings(peer):
    await peer.produce([b"1"])
    parts = urlsplit(f"{peer.server.url}/{peer.subject},{peer.stream}.b")
    source = _nats.of_url(parts, {"durable": "d", "start": "earliest", "until": "end"})
    assert await read_all(source) == [1]
    assert (await peer.info()).config.durable_name == "d"
    group = {"group": "e", "until": "end"}
    assert await read_all(_nats.of_url(parts, group)) == [1]
    assert (await peer.js.consumer_info(peer.stream, "e")).num_ack_pending == 1
    assert await read_all(_nats.of_url(parts, {**group, "jetstream": "false"})) == []
    with pytest.raises(ValueError, match="durable"):
        _nats.of_url(parts, {"durabel": "g"})
    with pytest.raises(ValueError, match="name the subject"):
        _nats.of_url(urlsplit(peer.server.url), {})
    for url in ("nats://me:hunter2@h:1/a,b", "nats://hunter2@h:1/a,b"):
        other = _nats.of_url(urlsplit(url), {"start": "5.5"})
        assert other.name == "nats a, b"
        assert "hunter2" not in repr(other)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": "yesterday"}, "start='yesterday'"),
        ({"start": {"s": "1-0"}}, "sequence"),
        ({"until": "tomorrow"}, "until='tomorrow'"),
        ({"ack_wait": 0}, "ack_wait"),
        ({"batch": 0}, "batch"),
        ({"decode": "yaml"}, "decode='yaml'"),
        ({"password": "a", "password_file": "b"}, "not both"),
        ({"jetstream": False, "durable": "d"}, "core NATS"),
        ({"queue": "q"}, "durable"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.nats("nats://h", "s", **settings)


def test_the_name_stays_a_function():
    assert connect.nats is connect.nats
    assert callable(connect.nats)
