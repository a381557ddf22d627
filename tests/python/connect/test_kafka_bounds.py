"""Kafka, with a real broker: where sources begin and end, and of which topics."""

import asyncio
import time

import pytest
from confluent_kafka import Producer
from conformance import close, take
from kafka_peer import FAST, everything, failure, one_partition, three_partitions  # noqa: F401

from member import Member
from velo import connect
from velo.connect.errors import NoSuchTopic, PositionLost


class TestBeginning:
    async def test_it_begins_at_a_time(self, peer):
        begin = round(time.time()) - 100
        for number in range(5):
            await peer.produce([b"%d" % number], timestamp=begin + number)
        records = await everything(peer.source(start=begin + 2, until="end"))
        assert [record.value for record in records] == [2, 3, 4]
        assert records[0].timestamp == begin + 2

    async def test_a_time_after_the_last_record_is_the_end(self, peer):
        await peer.produce([b"1"])
        member = Member(peer.source(start=time.time() + 1000))
        await member.until(lambda: member.events)
        await peer.produce([b"2"])
        await member.read(1)
        assert member.values == [2]
        await member.close()

    async def test_the_latest_begins_behind_what_is_there_and_stays_there(self, peer):
        await peer.produce([b"1"])
        member = Member(peer.source(start="latest"))
        await member.until(lambda: member.events)
        await peer.produce([b"2"])
        await member.read(1)
        assert member.values == [2]
        await member.close()
        # Nothing was committed by the handling, so the record comes again: it is not skipped.
        member = Member(peer.source(start="latest"))
        await member.read(1)
        assert member.values == [2]
        await member.close()

    async def test_what_is_committed_goes_before_start_unless_it_rewinds(self, peer):
        await peer.produce([b"1", b"2", b"3"])
        member = Member(peer.source())
        await member.read(3)
        await member.source.commit({(peer.topic, 0): 1})
        await member.close()
        assert [r.value for r in await everything(peer.source(start="earliest", until="end"))] == [
            3
        ]
        source = peer.source(start="earliest", rewind=True, until="end")
        assert [r.value for r in await everything(source)] == [1, 2, 3]

    async def test_a_mapping_begins_behind_each_position(self, wide):
        for number in range(3):
            await wide.produce([b"1", b"2"], partition=number)
        start = {(wide.topic, 0): 0, (wide.topic, 1): 1}
        records = await everything(wide.source(start=start, until="end", group=None))
        assert sorted((r.partition[1], r.value) for r in records) == [(0, 2), (2, 1), (2, 2)]

    async def test_without_a_group_it_reads_all_partitions_and_keeps_nothing(self, wide):
        await wide.produce([b"%d" % number for number in range(30)])
        for _ in range(2):
            source = wide.source(group=None)
            records, iteration = await take(source, 30)
            assert sorted(record.value for record in records) == list(range(30))
            await source.commit({record.partition: record.position for record in records})
            await close(source, iteration)

    async def test_a_position_that_is_gone_is_an_error_until_told_where_to_go_on(self, peer):
        await peer.produce([b"%d" % number for number in range(10)])
        member = Member(peer.source())
        await member.read(10)
        await member.source.commit({(peer.topic, 0): 1})
        await member.close()
        peer.server.delete_before(peer.topic, 0, 8)
        error = await failure(peer.source(start="earliest"))
        assert type(error) is PositionLost
        assert peer.topic in str(error)
        assert "rewind" in str(error)
        again = peer.source(start="earliest", rewind=True, until="end")
        assert [record.value for record in await everything(again)] == [8, 9]

    @pytest.mark.parametrize(
        "settings",
        [{"start": "now"}, {"start": True}, {"until": "now"}, {"rewind": True}, {"batch": 0},
         {"config": {"enable.auto.commit": True}}, {"user": "alice"}, {"decode": "pickle"}],
        ids=str,
    )  # fmt: skip
    def test_settings_that_do_not_fit_are_refused(self, settings, monkeypatch):
        monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
        with pytest.raises(ValueError):
            connect.kafka("localhost", "t", **settings)

    async def test_a_setting_that_the_client_does_not_have_is_named(self):
        source = connect.kafka("127.0.0.1:1", "t", config={"no.such": "x"})
        with pytest.raises(ValueError, match=r"no\.such"):
            await take(source, 1)


class TestEnd:
    async def test_it_reads_what_is_there_and_ends(self, wide):
        await wide.produce([b"%d" % number for number in range(20)], partition=0)
        await wide.produce([b"%d" % number for number in range(20, 25)], partition=1)
        for group in (None, wide.group):
            source = wide.source(until="end", batch=7, group=group)
            records = []
            async for item in source:
                if isinstance(item, list):
                    if not records:
                        await wide.produce([b"99"], partition=0)
                    records += item
            await source.close()
            assert sorted(record.value for record in records if record.value != 99) == [*range(25)]
            assert len(records) <= 26

    async def test_nothing_there_is_an_end_too(self, wide):
        assert await everything(wide.source(until="end")) == []
        assert await everything(wide.source(until="end", group=None)) == []

    async def test_it_ends_at_what_is_committed_already(self, peer):
        await peer.produce([b"1"])
        source = peer.source(until="end")
        async for item in source:
            if isinstance(item, list):
                await source.commit({item[-1].partition: item[-1].position})
        await source.close()
        assert await everything(peer.source(until="end")) == []

    async def test_it_ends_before_a_time(self, peer):
        begin = round(time.time()) - 100
        for number in range(5):
            await peer.produce([b"%d" % number], timestamp=begin + number)
        records = await everything(peer.source(until=begin + 3, group=None))
        assert [record.value for record in records] == [0, 1, 2]

    async def test_it_ends_when_a_time_has_come(self, peer):
        await peer.produce([b"1"])
        assert len(await everything(peer.source(until=time.time() + 1))) == 1

    async def test_records_of_transactions_end_too(self, peer):
        producer = Producer(
            {"bootstrap.servers": peer.server.address, "transactional.id": peer.topic}
        )
        await asyncio.to_thread(producer.init_transactions)
        for number in range(3):
            producer.begin_transaction()
            producer.produce(peer.topic, b"%d" % number)
            await asyncio.to_thread(producer.flush)
            end = producer.abort_transaction if number == 1 else producer.commit_transaction
            await asyncio.to_thread(end)
        del producer
        assert [r.value for r in await everything(peer.source(until="end"))] == [0, 2]


class TestTopics:
    @pytest.mark.parametrize("grouped", [True, False])
    async def test_several_topics_and_partitions_that_are_added(self, kafka, grouped):
        first, second = kafka.topic(), kafka.topic()
        group = f"group-of-{first}" if grouped else None
        member = Member(
            connect.kafka(
                kafka.address,
                [first, second],
                group=group,
                start="latest",
                refresh=0.2,
                config=FAST,
            )
        )
        await member.until(lambda: len(member.partitions) == 2)
        kafka.produce(first, [b"1"])
        kafka.produce(second, [b"2"])
        await member.read(2)
        assert {(r.topic, r.value) for r in member.records} == {(first, 1), (second, 2)}
        kafka.add_partitions(first, 2)
        kafka.disconnect()  # the producer of the test knows the old partitions
        # Produced before it is found: also with start="latest", all of a new partition is new.
        kafka.produce(first, [b"3"], partition=1)
        await member.read(3)
        assert member.records[2].partition == (first, 1)
        await member.close()
        kafka.disconnect()

    @pytest.mark.parametrize("grouped", [True, False])
    async def test_a_pattern_takes_topics_that_come_later(self, kafka, grouped):
        prefix = f"pattern-{grouped}-"
        kafka.topic(name=prefix + "a")
        group = prefix if grouped else None
        pattern = f"^{prefix}.*"
        member = Member(
            connect.kafka(kafka.address, pattern, group=group, refresh=0.2, config=FAST)
        )
        kafka.produce(prefix + "a", [b"1"])
        await member.read(1)
        kafka.topic(name=prefix + "b")
        kafka.produce(prefix + "b", [b"2"])
        await member.read(2)
        assert member.values == [1, 2]
        await member.close()
        with pytest.raises(ValueError, match="one topic"):
            await connect.kafka(kafka.address, pattern).write([(None, 1)])
        kafka.disconnect()

    async def test_a_missing_topic_is_named(self, kafka):
        for group in (None, "g"):
            error = await failure(connect.kafka(kafka.address, "missing", group=group))
            assert type(error) is NoSuchTopic
            assert "`missing`" in str(error)
        sink = connect.kafka(kafka.address, "missing")
        with pytest.raises(NoSuchTopic, match="`missing`"):
            await sink.write([("k", 1)])
        await sink.close()
