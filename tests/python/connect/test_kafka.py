"""Kafka, with a real broker: what every connector promises, records, and flow."""

import asyncio
import gc
import threading

import pytest
from conformance import SinkConformance, SourceConformance, close, take
from kafka_peer import FAST, KafkaPeer, everything, one_partition, three_partitions  # noqa: F401

from helpers import until
from member import Member
from servers.leaderless import Leaderless
from velo import connect
from velo.connect import Bad
from velo.connect.errors import ConnectError


class TestKafka(SourceConformance, SinkConformance):
    pass


class TestRecords:
    @pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
    async def test_compressed_records(self, peer, codec):
        sink = peer.sink(config={"compression.type": codec})
        await sink.write([("k", {"text": "a" * 100, "number": number}) for number in range(100)])
        await sink.flush()
        await sink.close()
        records = await everything(peer.source(until="end"))
        assert [record.value["number"] for record in records] == list(range(100))

    async def test_tombstones_and_missing_keys(self, peer):
        sink = peer.sink()
        await sink.write([("k", None), (None, 1)])
        await sink.flush()
        await sink.close()
        first, second = await everything(peer.source(until="end"))
        assert (first.key, first.value) == (b"k", None)
        assert (second.key, second.value) == (None, 1)

    async def test_keys_are_decoded(self, peer):
        await peer.produce([b"1"], key=b"caf\xc3\xa9")
        await peer.produce([b"2"], key=b"\xff")
        good, bad = await everything(peer.source(decode_key="text", until="end"))
        assert good.key == "café"
        assert type(bad) is Bad
        assert (bad.record.key, bad.record.value) == (b"\xff", b"2")

    async def test_results_say_where_they_go(self, peer):
        other = peer.server.topic()
        sink = peer.sink()
        result = connect.to({"a": 1}, topic=other, key="their", headers={"trace": "t", "n": b"\0"})
        await sink.write([("mine", result), ("mine", connect.to(2))])
        await sink.flush()
        await sink.close()
        (there,) = peer.server.read(other, 1)
        assert (there.key(), there.value()) == (b"their", b'{"a":1}')
        assert there.headers() == [("trace", b"t"), ("n", b"\0")]
        (here,) = await peer.read(1)
        assert (here.key(), here.value(), here.headers()) == (b"mine", b"2", None)

    @pytest.mark.parametrize("wrong", ["key", "topic", "value"])
    async def test_of_results_of_which_one_is_refused_none_is_written(self, peer, wrong):
        """Whatever is wrong with it."""
        refused = {
            "key": (object(), b"2"),
            "topic": ("k", connect.to(b"2", topic=7)),
            "value": ("k", [2]),
        }
        sink = peer.sink(encode=lambda value: value)
        with pytest.raises(TypeError):
            await sink.write([("k", b"1"), refused[wrong], ("k", b"3")])
        await sink.write([("k", b"4")])
        await sink.flush()
        await sink.close()
        assert await peer.written(1) == [b"4"]

    async def test_partitions_are_chosen_as_java_does(self, wide):
        # Hashes of Kafka's own tests of murmur2, without their sign.
        hashes = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
        sink = wide.sink()
        await sink.write([(key, 1) for key in hashes])
        await sink.flush()
        await sink.close()
        found = {m.key().decode(): m.partition() for m in await wide.read(3)}
        assert found == {key: (number & 0x7FFFFFFF) % 3 for key, number in hashes.items()}

    async def test_more_results_than_the_producer_queues(self, peer):
        sink = peer.sink(config={"queue.buffering.max.messages": 100})
        await sink.write([("k", number) for number in range(1000)])
        await sink.flush()
        await sink.close()
        assert await peer.written(1000) == [b"%d" % number for number in range(1000)]

    @pytest.mark.parametrize(
        "address", [{"key": object()}, {"topic": "a\0b"}, {"headers": {"\ud800": "v"}}]
    )
    async def test_of_results_that_no_message_can_carry_none_is_written(self, peer, address):
        sink = peer.sink()
        with pytest.raises((TypeError, ValueError)):
            await sink.write([("k", 1), ("k", connect.to(2, **address))])
        await sink.write([("k", 3)])
        await sink.flush()
        await sink.close()
        assert [record.value for record in await everything(peer.source(until="end"))] == [3]

    async def test_order_holds_where_results_name_topics_and_headers_and_the_queue_is_full(
        self, peer
    ):
        sink = peer.sink(config={"queue.buffering.max.messages": 7})
        headers = {"trace": "1"}
        results = [
            connect.to(number, headers=headers) if number % 5 == 0 else number
            for number in range(200)
        ]
        await sink.write([("k", result) for result in results])
        await sink.flush()
        await sink.close()
        assert await peer.written(200) == [b"%d" % number for number in range(200)]

    @pytest.mark.parametrize("in_transactions", [False, True])
    async def test_the_first_result_of_a_partition_is_not_lost_where_that_has_no_leader(
        self, peer, in_transactions
    ):
        async with Leaderless(peer.server.port, peer.topic) as broker, asyncio.timeout(30):
            sink = connect.kafka(broker.address, peer.topic, config=FAST)
            if in_transactions:
                await sink.begin(peer.topic)
            await sink.write([(None, 1)])
            await broker.asked.wait()
            await sink.write([(None, 2)])
            await sink.flush()
            if in_transactions:
                await sink.commit(1, {})
            await sink.close()
        found = [record.value for record in await everything(peer.source(until="end"))]
        assert found == [1, 2]

    async def test_a_result_that_is_not_delivered_is_named(self, kafka):
        peer = KafkaPeer(kafka, **{"max.message.bytes": 1000})
        sink = peer.sink()
        await sink.write([("k", "a" * 10_000)])
        with pytest.raises(ConnectError, match=f"`{peer.topic}`.*too large"):
            await sink.flush()
        await sink.write([("k", "short")])
        await sink.flush()
        await sink.close()
        assert await peer.written(1) == [b'"short"']
        kafka.disconnect()

    async def test_a_function_encodes_off_the_event_loop(self, peer):
        loop_thread, threads = threading.get_ident(), set()

        def encode(value):
            threads.add(threading.get_ident())
            return str(value).encode()

        sink = peer.sink(encode=encode)
        await sink.write([("k", 1)])
        await sink.flush()
        await sink.close()
        assert await peer.written(1) == [b"1"]
        assert loop_thread not in threads


class TestFlow:
    async def test_a_paused_partition_waits_and_the_others_go_on(self, wide):
        member = Member(wide.source(batch=5))
        await member.until(lambda: len(member.partitions) == 3)
        slow = (wide.topic, 0)
        member.source.pause([slow])
        # More than is held back, so that the consumer pauses the partition as well.
        await wide.produce([b"%d" % number for number in range(100)], partition=0)
        await wide.produce([b"%d" % number for number in range(100)], partition=1)
        await member.read(100)
        assert {record.partition for record in member.records} == {(wide.topic, 1)}
        member.source.resume([slow])
        await member.read(200)
        slow_values = [r.value for r in member.records if r.partition == slow]
        assert slow_values == list(range(100))
        await member.close()

    async def test_it_reads_ahead_a_bounded_part(self, peer):
        await peer.produce([b"%d" % number for number in range(2000)])
        source = peer.source(batch=10)
        iteration = aiter(source)
        first = []
        while not first:
            item = await anext(iteration)
            first = item if isinstance(item, list) else []
        await until(lambda: source.lag())
        assert source.lag()[peer.topic, 0] > 1800
        rest = []
        while len(first) + len(rest) < 2000:
            rest += await anext(iteration)
        assert [record.value for record in first + rest] == list(range(2000))
        await until(lambda: source.lag() == {(peer.topic, 0): 0})
        await close(source, iteration)

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_source_that_is_dropped_ends_its_thread(self, peer, fails):
        def decode(data):
            if fails:
                raise ConnectError("the schema registry is away")
            return data

        await peer.produce([b"1"])
        source = peer.source(decode=decode)
        if fails:
            with pytest.raises(ConnectError, match="registry"):
                await take(source, 1)
        else:
            await take(source, 1)
        name = f"velo {source.name}"
        assert any(thread.name == name for thread in threading.enumerate())
        del source

        def ended():
            gc.collect()
            return all(thread.name != name for thread in threading.enumerate())

        await until(ended)


def test_a_source_fetches_again_soon_after_its_queue_was_full():
    """librdkafka waits for a second by default, in which a fast function uses up the queue."""
    setting = "fetch.queue.backoff.ms"
    assert connect.kafka("localhost:1", "t")._reading.config[setting] == 20
    own = connect.kafka("localhost:1", "t", config={setting: 1000})
    assert own._reading.config[setting] == 1000
