"""What checkpoints need of Kafka, with a real broker: going back, and results with an epoch."""

import asyncio
import itertools
import logging

import pytest
from confluent_kafka import Consumer, TopicPartition
from conformance import close, take

from helpers import HANG, until
from member import Member
from velo import connect
from velo.connect.errors import ConnectError, PositionLost, Superseded, Unreachable

FAST = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 100}
_names = itertools.count()


@pytest.fixture
def topic(kafka):
    yield kafka.topic(3)
    kafka.disconnect()


@pytest.fixture
def name(topic):
    """A checkpoint that has this topic alone."""
    return f"of-{topic}"


@pytest.fixture
def ends(kafka):
    """Make endpoints, and close them."""
    made = []

    def make(topic, **settings):
        made.append(connect.kafka(kafka.address, topic, config=FAST, **settings))
        return made[-1]

    yield make
    assert all(each._reader is None and each._writer is None for each in made)


def committed(kafka, group, *names):
    consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": group})
    found = consumer.committed([TopicPartition(*each) for each in names], timeout=10)
    consumer.close()
    return [place.offset for place in found]


class TestSeek:
    async def test_partitions_that_have_no_position_begin_where_start_says(
        self, kafka, topic, ends
    ):
        for number in range(3):
            kafka.produce(topic, [b"0", b"1", b"2"], partition=number)
        source = ends(topic, group="a", until="end")
        async for item in source:
            if isinstance(item, list):
                await source.commit({(topic, 1): 0})
        await source.close()
        source = ends(topic, group="a")
        source.seek({(topic, 0): 1})
        records, iteration = await take(source, 6)
        found = sorted((record.partition[1], record.value) for record in records)
        assert found == [(0, 2), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
        await close(source, iteration)

    async def test_one_reads_all_partitions_and_only_stores(self, kafka, topic, ends):
        kafka.produce(topic, [b"%d" % number for number in range(30)])
        source = ends(topic, group="b", instance_id="one")
        source.seek({})
        member = Member(source)
        await member.read(30)
        assert sorted(member.values) == list(range(30))
        await member.commit()
        await member.close()
        last = {record.partition: record.position for record in member.records}
        assert committed(kafka, "b", *last) == [position + 1 for position in last.values()]

    async def test_a_second_one_that_reads_all_of_a_group_ends(self, kafka, topic, ends):
        group = f"alone-with-{topic}"

        def members():
            return kafka.members(f"velo-alone-{group}")

        def start():
            source = ends(topic, group=group)
            source.seek({})
            return Member(source)

        first = start()
        await first.until(lambda: members() == [3])
        second = start()
        await until(lambda: second.failure is not None)
        assert type(second.failure) is ConnectError
        assert "with a checkpoint of its own: each of them would handle" in str(second.failure)
        await second.close()
        # The first one goes on, and has all partitions to itself again.
        await first.until(lambda: members() == [3])
        kafka.produce(topic, [b"1"], partition=0)
        await first.read(1)
        await first.close()
        third = start()
        await third.until(lambda: members() == [3])
        await third.close()

    async def test_a_partition_that_is_added_is_read_from_its_first_record(self, kafka, ends):
        topic = kafka.topic()
        kafka.produce(topic, [b"0", b"1"])
        source = ends(topic, group="c", start="latest", refresh=0.2)
        source.seek({(topic, 0): 0})
        member = Member(source)
        await member.read(1)
        kafka.add_partitions(topic, 2)
        kafka.disconnect()  # the producer of the test knows the old partitions
        kafka.produce(topic, [b"2"], partition=1)
        await member.read(2)
        assert member.values == [1, 2]
        await member.close()
        kafka.disconnect()

    async def test_a_position_that_is_gone_names_the_checkpoint(self, kafka, topic, ends):
        kafka.produce(topic, [b"%d" % number for number in range(10)], partition=0)
        kafka.delete_before(topic, 0, 8)
        for position in (3, 100):
            source = ends(topic)
            source.seek({(topic, 0): position})
            with pytest.raises(PositionLost, match="begin with a new checkpoint") as lost:
                await take(source, 100)
            assert topic in str(lost.value)
            await source.close()
        source = ends(topic, until="end")
        source.seek({(topic, 0): 7})
        assert [item.value async for batch in source for item in batch_of(batch)] == [8, 9]
        await source.close()

    async def test_a_partition_that_is_gone_is_a_position_that_is_gone(self, kafka, topic, ends):
        source = ends(topic)
        source.seek({(topic, 3): 7, ("another", 9): 1, "of another source": 1})
        with pytest.raises(PositionLost, match=rf"\('{topic}', 3\).*made anew"):
            await take(source, 1)
        await source.close()

    @pytest.mark.parametrize("start", ["earliest", "latest"])
    async def test_a_group_with_members_of_its_own_stores_nothing(
        self, kafka, topic, ends, start, caplog
    ):
        kafka.produce(topic, [b"1"], partition=0)
        member = Member(ends(topic, group="d"))
        await member.until(lambda: len(member.partitions) == 3)
        source = ends(topic, group="d", start=start)
        source.seek({(topic, 1): -1})
        kafka.produce(topic, [b"2"], partition=1)
        other = Member(source)
        await other.read(1)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                await other.commit()
        assert caplog.text.count("because it has members") == 1
        await other.close()
        await member.close()


def batch_of(item):
    return item if isinstance(item, list) else []


class Topic:
    """What readers of a topic see."""

    def __init__(self, kafka, topic):
        self._kafka = kafka
        self._topic = topic

    def values(self, level="read_committed"):
        """All values of partition 0, as far as transactions allow."""
        consumer = Consumer(
            {"bootstrap.servers": self._kafka.address, "group.id": "any",
             "isolation.level": level, "enable.partition.eof": True}
        )  # fmt: skip
        consumer.assign([TopicPartition(self._topic, 0, 0)])
        found = []
        while (message := consumer.poll(30)).error() is None:
            found.append(int(message.value()))
        consumer.close()
        return found

    def end(self):
        """Where readers of partition 0 come to, which is ahead of a transaction that is open."""
        consumer = Consumer(
            {"bootstrap.servers": self._kafka.address, "group.id": "any",
             "isolation.level": "read_committed"}
        )  # fmt: skip
        _, end = consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=30)
        consumer.close()
        return end


@pytest.fixture
def out(kafka):
    topic = kafka.topic()
    yield topic
    kafka.disconnect()


def queued(sink):
    """How many results the client of a sink has not got rid of."""
    return len(sink._writer._producer)


async def begun(sink, name):
    """Have a checkpoint begin: a sink with little time then needs no transaction to begin."""
    await sink.begin(name)
    await sink.close()


async def write(sink, *numbers):
    await sink.write([("k", number) for number in numbers])
    await sink.flush()


class TestTransactions:
    async def test_readers_see_a_tick_whole_or_not_at_all(self, kafka, out, ends):
        topic = Topic(kafka, out)
        sink = ends(out)
        assert await sink.begin(out) == 0
        for epoch, numbers in enumerate(([1, 2], [], [3]), 1):
            before = topic.values()
            await write(sink, *numbers)
            assert topic.values() == before
            await sink.commit(epoch, {("x", 1): 2})
            assert topic.values() == before + numbers
        await write(sink, 4)
        await sink.close()
        assert topic.values() == [1, 2, 3]
        assert topic.values("read_uncommitted") == [1, 2, 3, 4]
        sink = ends(out)
        assert await sink.begin(out, 3) == 3
        await sink.close()
        sink = ends(out)
        assert await sink.begin(f"another-than-{out}") == 0
        await sink.close()

    async def test_a_program_whose_checkpoint_goes_on_elsewhere_commits_nothing(
        self, kafka, out, ends
    ):
        topic = Topic(kafka, out)
        old, new = ends(out), ends(out)
        await old.begin(out)
        await write(old, 1)
        assert await new.begin(out) == 0
        await write(new, 2)
        with pytest.raises(Superseded, match="another program"):
            await old.commit(1, {})
        await new.commit(1, {})
        await old.close()
        assert topic.values() == [2]
        await write(new, 3)
        await new.commit(2, {})
        await new.close()
        assert topic.values() == [2, 3]

    async def test_results_that_are_queued_when_it_is_shut_out_are_not_the_reason(
        self, kafka, ends
    ):
        # The first request is refused while results of other partitions wait.
        many = kafka.topic(8)
        config = FAST | {"linger.ms": 30_000}
        old = connect.kafka(kafka.address, many, config=config)
        await old.begin(many)
        await old.write([(str(number), number) for number in range(200)])
        new = ends(many)
        await new.begin(many)
        with pytest.raises(Superseded, match="another program"):
            await old.flush()
        with pytest.raises(Superseded, match="another program"):
            await write(old, 1)
        with pytest.raises(Superseded, match="another program"):
            await old.commit(1, {})
        await old.close()
        await new.close()
        kafka.disconnect()

    async def test_results_that_expire_while_it_is_shut_out_are_not_the_reason(
        self, kafka, out, ends, monkeypatch
    ):
        # As for a program that stood still: its client only knows that nobody has answered.
        await begun(ends(out), out)
        config = FAST | {"transaction.timeout.ms": 1000}
        old = connect.kafka(kafka.address, out, config=config)
        await old.begin(out)
        kafka.freeze()
        try:
            await old.write([("k", number) for number in range(10)])
            await until(lambda: old._writer._called("poll", 0) == queued(old) == 0)
        finally:
            kafka.thaw()
        new = ends(out)
        await new.begin(out)
        # What the broker says is awaited, and what the client alone knows is not taken for it.
        monkeypatch.setattr("velo.connect._kafka.transactions._TRY", 20.0)
        with pytest.raises(Superseded, match="another program"):
            await old.flush()
        with pytest.raises(Superseded, match="another program"):
            await old.commit(1, {})
        await old.close()
        await new.close()

    async def test_a_result_that_is_refused_is_the_reason(self, kafka, ends):
        # The transaction is given up for it, and what is queued behind it is purged.
        many = kafka.topic(8, **{"max.message.bytes": 1000})
        sink = ends(many)
        await sink.begin(many)
        results = [(str(number), "x" * 2000 * (number == 50)) for number in range(100)]
        await sink.write(results)
        with pytest.raises(ConnectError, match=f"{many}.*too large") as raised:
            await sink.flush()
        assert not isinstance(raised.value, Superseded)
        await sink.close()
        kafka.disconnect()

    async def test_a_tick_that_takes_too_long_is_named(self, kafka, out, ends):
        await begun(ends(out), out)
        topic = Topic(kafka, out)
        before = topic.end()
        sink = connect.kafka(kafka.address, out, config=FAST | {"transaction.timeout.ms": 4000})
        await sink.begin(out)
        await write(sink, 1)
        # Readers go past the transaction once the broker, which looks now and then, has ended it.
        async with asyncio.timeout(HANG):
            while topic.end() == before:
                await asyncio.sleep(0.1)
        with pytest.raises(ConnectError, match=r"transaction\.timeout\.ms"):
            await write(sink, 1)
        await sink.close()
        sink = ends(out)
        assert await sink.begin(out) == 0
        await sink.close()
        assert topic.values() == []

    async def test_an_epoch_that_is_forgotten_or_another_ones_is_named(self, kafka, out, ends):
        sink = ends(out)
        with pytest.raises(PositionLost, match=rf"velo-{out}.*offsets\.retention\.minutes"):
            await sink.begin(out, 1)
        await sink.close()
        consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": f"velo-{out}"})
        consumer.commit(offsets=[TopicPartition(out, 0, 17)], asynchronous=False)
        consumer.close()
        sink = ends(out)
        with pytest.raises(ConnectError, match="something else commits"):
            await sink.begin(out, 1)
        await sink.close()

    async def test_without_begin_there_is_no_commit_of_an_epoch(self, out, ends):
        sink = ends(out)
        with pytest.raises(ValueError, match="`begin` first"):
            await sink.commit(1, {})
        await write(sink, 1)
        await sink.close()

    async def test_no_broker_is_an_error_within_the_time_that_connecting_may_take(self, ends):
        sink = connect.kafka("127.0.0.1:1", "t", connect_timeout=0.5)
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
            await sink.begin("a")
        await sink.close()
