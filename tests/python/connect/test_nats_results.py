"""Results on NATS: subjects, ids, errors, and core NATS."""

import asyncio
import json
import uuid

import pytest
from conformance import close, last_positions
from nats_peer import NatsPeer, take_more, until, values_of

from helpers import HANG
from velo import connect, stream_fn
from velo._diagnostics import failpoints
from velo.connect.errors import (
    ConnectError,
)
from velo.connect.model import Assigned


@pytest.fixture
async def peer(nats):
    peer = await NatsPeer(nats).open()
    yield peer
    await peer.close()


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


class Crash(Exception):
    """The process dies here."""


async def test_a_count_in_the_state_is_an_id_that_outlives_a_crash(mode, peer, tmp_path):
    @stream_fn(mode=mode)
    async def numbered(events, state):
        async for event in events:
            state["n"] = state.get("n", 0) + 1
            headers = {"Nats-Msg-Id": f"{event['k']}-{state['n']}"}
            yield connect.to([event["v"], state["n"]], headers=headers)

    def dies(area, step):
        if (area, step) == ("tick", 3):  # results are written, and the tick is not stored
            raise Crash

    events = [{"k": n % 7, "v": n} for n in range(50)]
    failpoints.hook = dies
    try:
        with pytest.raises(Crash):
            await numbered.keyed(events, key="k").into(peer.sink(), checkpoint=tmp_path)
    finally:
        failpoints.hook = None
    assert len(await peer.messages(50)) == 50
    await numbered.keyed(events, key="k").into(peer.sink(), checkpoint=tmp_path)
    sink = peer.sink()
    await sink.write([(None, "last")])
    await sink.close()
    found = [json.loads(data) for data in await peer.written(51)]
    assert sorted(found[:50]) == [[n, n // 7 + 1] for n in range(50)]
    assert found[50] == "last"


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
        (connect.to(1, topic="a.\ud800"), "surrogates"),
        (connect.to(1, headers={"a b": "c"}), "cannot have the name 'a b'"),
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
