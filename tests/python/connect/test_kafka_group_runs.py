"""Group runs over a real broker: partitions move between programs with the state of their keys."""

import asyncio
import json
from functools import partial

import pytest

from helpers import until
from velo import connect, stream_fn
from velo._checkpoint.address import below
from velo._checkpoint.checkpoint import Checkpoint
from velo.errors import CheckpointError

obstore = pytest.importorskip("obstore")
# Its threads and their descriptors last from the first call on, so that they are no leak of a test.
obstore.list(obstore.store.MemoryStore()).collect()

QUICK = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 200, "reconnect.backoff.ms": 10}
PARTITIONS, KEYS = 4, 12


@stream_fn
async def counts(events, state):
    """Numbers the events of its key."""
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        yield {"key": events.record.key.decode(), "n": state["n"], "event": event}


class Program:
    """A run in this event loop, as if it were a program of its own."""

    def __init__(self, kafka, source, sink, checkpoint, mode="inline", config=QUICK, **settings):
        self.source = connect.kafka(
            kafka.address, source, group=f"of-{source}", config=config, **settings
        )
        self.run = counts.options(mode=mode).keyed(self.source, key=connect.record_key)
        sink = connect.kafka(kafka.address, sink, config={"reconnect.backoff.ms": 10})
        self.task = asyncio.create_task(
            self.run.into(sink, checkpoint=checkpoint, checkpoint_every=0.05)
        )

    @property
    def partitions(self):
        return {number for _, number in self.source.lag()}

    async def stop(self):
        self.run.stop()
        return await self.task


@pytest.fixture
def topics(kafka):
    source = kafka.topic(PARTITIONS)
    yield source, kafka.topic(PARTITIONS)
    kafka.disconnect()


@pytest.fixture
def checkpoint(tmp_path):
    return f"{(tmp_path / 'store').as_uri()}?cache={tmp_path / 'cache'}"


async def produce(kafka, topic, numbers):
    """Each number to the topic, under a key in its turn."""
    for key in range(KEYS):
        values = [b"%d" % number for number in numbers if number % KEYS == key]
        await asyncio.to_thread(kafka.produce, topic, values, str(key))


async def read(kafka, topic, count):
    """The results by key; there must be so many, and no more."""
    messages = await asyncio.to_thread(kafka.read, topic, count)
    found = {}
    for message in messages:
        result = json.loads(message.value())
        found.setdefault(result["key"], []).append((result["n"], result["event"]))
    return found


def expected(count):
    found = {}
    for number in range(count):
        of = found.setdefault(str(number % KEYS), [])
        of.append((len(of) + 1, number))
    return found


async def test_members_come_and_go(kafka, topics, checkpoint, mode):
    source, sink = topics
    first = Program(kafka, source, sink, checkpoint, mode)
    await produce(kafka, source, range(120))
    await until(lambda: first.run.figures.read == 120)
    second = Program(kafka, source, sink, checkpoint, mode)
    await until(lambda: len(first.partitions) == len(second.partitions) == PARTITIONS // 2)
    assert first.partitions | second.partitions == set(range(PARTITIONS))
    await produce(kafka, source, range(120, 240))
    await until(lambda: first.run.figures.read + second.run.figures.read >= 240)
    await first.stop()
    await until(lambda: len(second.partitions) == PARTITIONS)
    await produce(kafka, source, range(240, 360))
    # Not so many records that were read: those of a key that was late at a tick are read again.
    assert await read(kafka, sink, 360) == expected(360)
    await second.stop()
    # One that ends where the topic does: it finds nothing new, and writes nothing new.
    third = Program(kafka, source, sink, checkpoint, mode, until="end")
    assert (await third.task).read == 0
    assert await read(kafka, sink, 360) == expected(360)


async def test_the_newer_protocol_moves_partitions_too(kafka, topics, checkpoint):
    source, sink = topics
    newer = {"group.protocol": "consumer", "reconnect.backoff.ms": 10}
    first = Program(kafka, source, sink, checkpoint, config=newer)
    await produce(kafka, source, range(60))
    await until(lambda: first.run.figures.read == 60)
    second = Program(kafka, source, sink, checkpoint, config=newer)
    await until(lambda: len(first.partitions) == len(second.partitions) == PARTITIONS // 2)
    await produce(kafka, source, range(60, 120))
    await until(lambda: first.run.figures.read + second.run.figures.read >= 120)
    await first.stop()
    await second.stop()
    assert await read(kafka, sink, 120) == expected(120)


async def test_a_shard_without_a_checkpoint_is_warned_of(
    kafka, topics, checkpoint, tmp_path, caplog
):
    source, sink = topics
    await produce(kafka, source, range(KEYS))
    first = Program(kafka, source, sink, checkpoint, until="end")
    await first.task
    assert "no state is known" not in caplog.text
    await produce(kafka, source, range(KEYS, 2 * KEYS))
    another = f"{(tmp_path / 'another').as_uri()}?cache={tmp_path / 'cache'}"
    second = Program(kafka, source, sink, another, until="end")
    assert (await second.task).read == KEYS
    assert "no state is known" in caplog.text


async def test_an_owner_takes_over_again_from_one_that_claims_late(
    kafka, topics, checkpoint, caplog
):
    source, sink = topics
    owner = Program(kafka, source, sink, checkpoint)
    await produce(kafka, source, range(60))
    await until(lambda: owner.run.figures.read == 60)
    assert not await owner.source.reassign((source, PARTITIONS))
    shard = below(checkpoint, f"{source}-1")
    late = partial(Checkpoint.open, shard, "counts", beside=True)
    (await asyncio.to_thread(late)).close()
    await produce(kafka, source, range(60, 120))
    await until(lambda: "takes it over again" in caplog.text)
    await until(lambda: owner.run.figures.read >= 120)
    assert await read(kafka, sink, 120) == expected(120)
    await owner.stop()


async def test_partitions_that_are_added_are_warned_of(kafka, topics, checkpoint, caplog):
    source, sink = topics
    first = Program(kafka, source, sink, checkpoint, refresh=0.2)
    await produce(kafka, source, range(60))
    await until(lambda: first.run.figures.read == 60)
    kafka.add_partitions(source, 3 * PARTITIONS)
    await until(lambda: len(first.partitions) == 3 * PARTITIONS)
    assert f"the topic `{source}` has 12 partitions, and had 4" in caplog.text
    kafka.disconnect()  # its producer learns of them late otherwise
    await produce(kafka, source, range(60, 120))
    await until(lambda: first.run.figures.read == 120)
    await first.stop()
    # What the warning says: keys that have moved have begun anew, and the others have gone on.
    ends = [results[-1][0] for results in (await read(kafka, sink, 120)).values()]
    assert set(ends) == {5, 10}


async def test_a_run_that_has_read_alone_is_not_begun_anew_as_a_group(kafka, topics, checkpoint):
    source, sink = topics
    await produce(kafka, source, range(60))
    alone = connect.kafka(kafka.address, source, until="end", config=QUICK)
    results = connect.kafka(kafka.address, sink, config={"reconnect.backoff.ms": 10})
    run = counts.keyed(alone, key=connect.record_key)
    assert (await run.into(results, checkpoint=checkpoint)).read == 60
    with pytest.raises(CheckpointError, match="one checkpoint for all partitions"):
        await Program(kafka, source, sink, checkpoint).task
    assert await read(kafka, sink, 60) == expected(60)


def test_partitions_that_move_all_at_once_are_refused():
    config = {"partition.assignment.strategy": "range"}
    source = connect.kafka("127.0.0.1:1", "t", group="g", config=config)
    with pytest.raises(ValueError, match="move one by one"):
        source.share()
