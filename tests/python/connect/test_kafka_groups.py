"""Kafka's groups and outages, with a real broker: take-over, rebalances, restarts."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from helpers import HANG, until
from member import Member
from velo import connect
from velo.connect import Lost
from velo.connect.errors import ConnectError, Unreachable

# Members hear of each other soon, and a broker that comes back is found soon.
QUICK = {
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 200,
    "reconnect.backoff.ms": 10,
    "reconnect.backoff.max.ms": 100,
}
# A member that dies is missed soon.
MORTAL = {**QUICK, "session.timeout.ms": 3000}

QUICK_SINK = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 100}

# A member in a process of its own: prints each item, and commits each batch where it is told to.
PROGRAM = """
import asyncio, json, sys
from velo import connect
from velo.connect import Assigned, Lost, Revoked

async def main(address, topic, group, config):
    source = connect.kafka(address, topic, group=group, config=config, batch=10)
    async for item in source:
        if isinstance(item, Assigned | Revoked | Lost):
            print(json.dumps([type(item).__name__, sorted(n for _, n in item.partitions)]))
            if isinstance(item, Lost):
                await source.commit({name: 10**6 for name in item.partitions})
                print(json.dumps(["committed", []]))
        else:
            # Said before the commit: a program that is killed behind it has said what it committed.
            print(json.dumps(["records", [record.value for record in item]]), flush=True)
            await source.commit({record.partition: record.position for record in item})
        sys.stdout.flush()

asyncio.run(main(*sys.argv[1:4], json.loads(sys.argv[4])))
"""

# A member that is closed while the client holds an assignment which was not polled yet. It is a
# program of its own, because a client that does not close may stop all threads of its program.
CLOSING = """
import asyncio, sys, threading, time
from velo import connect
from velo.connect._kafka import alone, reader

# The reader's own client, or the one that looks for other programs beside a checkpoint.
module = {"reader": reader, "alone": alone}[sys.argv[3]]

class Late(module.Consumer):
    def poll(self, seconds):
        polled.set()
        time.sleep(2)  # the assignment comes meanwhile; where it does not, closing is easy

async def main(address, topic):
    source = connect.kafka(address, topic, group=f"group-of-{topic}")
    if module is alone:
        source.seek({})
    reading = asyncio.create_task(anext(aiter(source)))
    await asyncio.to_thread(polled.wait)
    await source.close()
    reading.cancel()

module.Consumer = Late
polled = threading.Event()
asyncio.run(main(*sys.argv[1:3]))
"""


class Program:
    """`PROGRAM`, and what it has printed."""

    def __init__(self, folder, address, topic, group):
        self.output = folder / "output"
        arguments = [address, topic, group, json.dumps(MORTAL)]
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments], stdout=output
            )

    def said(self, kind):
        lines = [json.loads(line) for line in self.output.read_text().splitlines(keepends=False)]
        return [value for said, values in lines if said == kind for value in values]

    def heard(self, kind):
        return any(json.loads(x)[0] == kind for x in self.output.read_text().splitlines())

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(kafka):
    yield kafka
    if kafka.process is None:
        kafka.start()
    kafka.thaw()
    kafka.disconnect()


def source(broker, topic, config=QUICK, **settings):
    settings = {"group": f"group-of-{topic}", "refresh": 1.0, **settings}
    return connect.kafka(broker.address, topic, config=config, **settings)


async def produce(broker, topic, numbers, partitions=1):
    """Numbers to the partitions in turn."""
    for partition in range(partitions):
        values = [b"%d" % number for number in numbers if number % partitions == partition]
        await asyncio.to_thread(broker.produce, topic, values, partition=partition)


PROTOCOLS = {
    "cooperative": QUICK,
    "eager": {**QUICK, "partition.assignment.strategy": "range"},
    "consumer protocol": {"group.protocol": "consumer", "reconnect.backoff.ms": 10},
}
EACH_PROTOCOL = pytest.mark.parametrize("config", PROTOCOLS.values(), ids=PROTOCOLS)


class TestGroups:
    @EACH_PROTOCOL
    async def test_members_share_partitions_and_go_on_at_what_is_committed(self, broker, config):
        topic = broker.topic(4)
        first = Member(source(broker, topic, config))
        first._on_revoked = lambda _partitions: first.commit()
        await first.until(lambda: len(first.partitions) == 4)
        await produce(broker, topic, range(40), 4)
        await first.read(40)
        # The second one joins: what it takes over was committed before it was given away.
        second = Member(source(broker, topic, config))
        await second.until(lambda: len(first.partitions) == len(second.partitions) == 2)
        await produce(broker, topic, range(40, 80), 4)
        await until(lambda: len(first.records) + len(second.records) >= 80)
        assert sorted(first.values + second.values) == list(range(80))
        assert {r.partition for r in second.records} == second.partitions
        # The second one leaves without a commit: its records come again, and no others.
        await second.close()
        await first.until(lambda: len(first.partitions) == 4)
        await first.read(80)
        assert sorted(first.values) == list(range(80))
        await first.close()

    async def test_a_member_that_is_killed_is_taken_over_where_it_committed(self, broker, tmp_path):
        topic = broker.topic(2)
        await produce(broker, topic, range(100), 2)
        program = Program(tmp_path, broker.address, topic, f"group-of-{topic}")
        try:
            await until(lambda: program.heard("records"))
        finally:
            program.end()
        done = set(program.said("records"))
        second = Member(source(broker, topic))
        await second.until(lambda: done | set(second.values) == set(range(100)))
        await second.until(lambda: second.source.lag() == {(topic, 0): 0, (topic, 1): 0})
        assert len(second.values) == len(set(second.values))
        # At most the batch whose commit was under way comes a second time.
        assert len(done & set(second.values)) <= 10
        await second.close()

    async def test_a_member_that_stands_still_loses_its_partitions_and_commits_nothing(
        self, broker, tmp_path
    ):
        topic = broker.topic(1)
        await produce(broker, topic, range(10))
        program = Program(tmp_path, broker.address, topic, f"group-of-{topic}")
        try:
            await until(lambda: len(program.said("records")) == 10)
            program.process.send_signal(signal.SIGSTOP)
            second = Member(source(broker, topic))
            await second.until(lambda: second.partitions)
            await produce(broker, topic, range(10, 20))
            # The program may have stopped before its commit: then all 20 come.
            await second.until(lambda: 19 in second.values)
            await second.commit()
            program.process.send_signal(signal.SIGCONT)
            await until(lambda: program.heard("Lost"))
            await until(lambda: program.heard("committed"))
        finally:
            program.end()
        await second.close()
        third = Member(source(broker, topic, until="end"))
        await until(lambda: third.ended)
        assert (third.failure, third.values) == (None, [])
        await third.close()

    async def test_partitions_wait_for_handling_and_commit_before_they_move(self, broker):
        topic = broker.topic(2)
        gate, revoked = asyncio.Event(), asyncio.Event()

        async def on_revoked(_partitions):
            revoked.set()
            await gate.wait()
            await first.commit()

        first = Member(source(broker, topic), on_revoked)
        await produce(broker, topic, range(20), 2)
        await first.read(20)
        second = Member(source(broker, topic))
        await first.until(revoked.is_set)
        assert not second.partitions
        gate.set()
        await second.until(lambda: len(second.partitions) == 1)
        await produce(broker, topic, range(20, 40), 2)
        await until(lambda: len(first.records) + len(second.records) >= 40)
        assert sorted(first.values + second.values) == list(range(40))
        await first.close()
        await second.close()

    async def test_partitions_do_not_wait_for_ever(self, broker, caplog):
        topic = broker.topic(2)
        stuck = asyncio.Event()

        async def on_revoked(_partitions):
            await stuck.wait()

        first = Member(source(broker, topic, revoke_timeout=0.2), on_revoked)
        await produce(broker, topic, range(20), 2)
        await first.read(20)
        second = Member(source(broker, topic))
        await second.read(10)
        assert set(second.values) < set(range(20))
        assert "revoke_timeout" in caplog.text
        stuck.set()
        await first.until(lambda: any(isinstance(event, Lost) for event in first.events))
        # Too late: the positions of the lost partition are another member's to commit.
        await first.commit()
        await second.close()
        await first.close()
        third = Member(source(broker, topic, until="end"))
        await until(lambda: third.ended)
        assert sorted(third.values) == sorted(second.values)
        await third.close()

    async def test_a_static_member_comes_back_without_a_rebalance(self, broker):
        topic = broker.topic(2)
        config = {**QUICK, "session.timeout.ms": 30_000}

        def member(name):
            return Member(source(broker, topic, config, instance_id=name))

        first, second = member("a"), member("b")
        await first.until(lambda: len(first.partitions) == len(second.partitions) == 1)
        before, events = first.partitions, len(second.events)
        await first.close()
        first = member("a")
        await first.until(lambda: first.partitions)
        assert first.partitions == before
        # The other one may be told of no partitions, where the group has joined anew for its own
        # reasons, but not of one that comes or goes.
        assert not [event for event in second.events[events:] if event.partitions]
        # One name twice: the older one is told, and does not look alive.
        twin = member("a")
        await until(lambda: first.failure is not None)
        assert type(first.failure) is ConnectError
        assert "instance_id" in str(first.failure)
        for each in (first, second, twin):
            await each.close()

    async def test_the_end_of_a_group_is_the_end_of_each_members_part(self, broker):
        topic = broker.topic(4)
        await produce(broker, topic, range(100), 4)
        members = [Member(source(broker, topic, until="end")) for _ in range(2)]

        async def finish(member):
            await member.until(lambda: member.ended)
            await member.commit()
            await member.close()

        # Together: one that has no partitions waits until the other one has committed.
        await asyncio.gather(*map(finish, members))
        seen = {value for member in members for value in member.values}
        assert seen == set(range(100))

    @EACH_PROTOCOL
    async def test_the_end_waits_for_partitions_that_another_member_gives_away(
        self, broker, config
    ):
        topic = broker.topic(4)
        await produce(broker, topic, range(100), 4)
        first = Member(source(broker, topic, config))  # commits nothing
        await first.read(100)
        second = Member(source(broker, topic, config, until="end"))
        await second.until(lambda: second.ended)
        given = [number for _, number in second.partitions]
        assert given
        assert sorted(second.values) == [n for n in range(100) if n % 4 in given]
        await second.close()
        await first.close()

    @pytest.mark.parametrize("protocol", ["cooperative", "consumer protocol"])  # neither moves it
    async def test_a_member_without_partitions_ends_when_all_is_committed(
        self, broker, protocol, caplog
    ):
        config = PROTOCOLS[protocol]
        caplog.set_level("INFO", "velo.connect")
        topic = broker.topic(1)
        await produce(broker, topic, range(10))
        first = Member(source(broker, topic, config))
        await first.read(10)
        second = Member(source(broker, topic, config, until="end"))
        await second.until(lambda: "this member has no partitions" in caplog.text)
        assert not second.ended
        await first.commit()
        await second.until(lambda: second.ended)
        assert second.values == []
        await second.close()
        await first.close()

    @pytest.mark.parametrize("client", ["reader", "alone"])
    async def test_a_member_is_closed_while_it_is_given_partitions(self, broker, client):
        command = [sys.executable, "-c", CLOSING, broker.address, broker.topic(2), client]
        ended = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=HANG
        )
        assert (ended.returncode, ended.stderr) == (0, "")

    @EACH_PROTOCOL
    async def test_a_member_that_is_closed_leaves(self, broker, config):
        """The group would wait for one that did not, for as long as its session."""
        topic = broker.topic(4)
        group = f"group-of-{topic}"
        await produce(broker, topic, range(10))
        for _ in range(3):
            member = Member(source(broker, topic, config))
            await member.read(10)
            await member.close()
            assert await asyncio.to_thread(broker.members, group) == []


class TestOutages:
    @pytest.mark.parametrize("group", ["a group", None])
    async def test_a_source_goes_on_when_the_broker_is_back(self, broker, caplog, group):
        topic = broker.topic()
        await produce(broker, topic, range(10))
        group = group and f"{group} of {topic}"
        member = Member(source(broker, topic, group=group))
        await member.read(10)
        await asyncio.to_thread(broker.kill)
        await until(lambda: "lost the server" in caplog.text)
        commit = asyncio.create_task(member.commit())
        await asyncio.to_thread(broker.start)
        broker.disconnect()
        await produce(broker, topic, range(10, 20))
        await member.until(lambda: set(member.values) == set(range(20)))
        await commit
        await until(lambda: member.source.reconnects >= 1)
        assert broker.address in caplog.text
        # An attempt to connect that was begun while the broker was away may fail behind that.
        assert caplog.text.count(f"kafka {topic}: lost the server") in (1, 2)
        await member.commit()
        await member.close()
        if group is not None:
            last = Member(source(broker, topic, group=group, until="end"))
            await last.until(lambda: last.ended)
            assert last.values == []
            await last.close()

    async def test_a_source_goes_on_when_the_broker_has_stood_still(self, broker):
        topic = broker.topic()
        member = Member(source(broker, topic))
        await member.until(lambda: member.partitions)
        broker.freeze()
        commit = asyncio.create_task(member.source.commit({(topic, 0): 0}))
        broker.thaw()
        await produce(broker, topic, range(5))
        await member.read(5)
        await commit
        await member.close()

    async def test_a_sink_delivers_each_result_once_through_a_restart(self, broker):
        topic = broker.topic()
        sink = connect.kafka(broker.address, topic, config=QUICK_SINK)
        await sink.write([("k", number) for number in range(100)])
        await sink.flush()
        await asyncio.to_thread(broker.kill)
        await sink.write([("k", number) for number in range(100, 200)])
        flush = asyncio.create_task(sink.flush())
        await asyncio.to_thread(broker.start)
        broker.disconnect()
        await flush
        await sink.close()
        messages = await asyncio.to_thread(broker.read, topic, 200)
        assert [int(message.value()) for message in messages] == list(range(200))

    async def test_a_tick_is_committed_through_a_restart(self, broker):
        """The second one: the client knows then who coordinates the group, and must ask again."""
        topic = broker.topic()
        sink = connect.kafka(broker.address, topic, config=QUICK_SINK)
        await sink.begin(topic)
        for epoch in (1, 2, 3):
            await sink.write([("k", epoch)])
            await sink.flush()
            if epoch == 2:
                await asyncio.to_thread(broker.kill)
            commit = asyncio.create_task(sink.commit(epoch, {}))
            if epoch == 2:
                await asyncio.to_thread(broker.start)
                broker.disconnect()
            await commit
        await sink.close()
        sink = connect.kafka(broker.address, topic, config=QUICK_SINK)
        assert await sink.begin(topic, 3) == 3
        await sink.close()
        messages = await asyncio.to_thread(broker.read, topic, 3)
        assert [int(message.value()) for message in messages] == [1, 2, 3]

    async def test_a_commit_that_is_not_answered_in_time_is_an_error(self, broker, monkeypatch):
        topic = broker.topic()
        sink = connect.kafka(broker.address, topic, config=QUICK_SINK)
        await sink.begin(topic)
        await sink.write([("k", 1)])
        await sink.flush()
        broker.freeze()
        # Only now: what came before has the time that it takes.
        monkeypatch.setattr(sink._writer, "_limit", 1.5)
        try:
            async with asyncio.timeout(HANG / 2):
                with pytest.raises(Unreachable, match=r"1\.5 s.*at the next start"):
                    await sink.commit(1, {})
                await sink.close()
        finally:
            broker.thaw()

    async def test_results_that_no_broker_takes_in_time_are_an_error(self, broker):
        topic = broker.topic()
        sink = connect.kafka(
            broker.address, topic, config={**QUICK_SINK, "message.timeout.ms": 500}
        )
        await sink.write([])
        broker.freeze()
        await sink.write([("k", 1)])
        with pytest.raises(Unreachable, match=f"`{topic}`: a result was not delivered"):
            await sink.flush()
        broker.thaw()
        await sink.close()

    async def test_closing_does_not_wait_for_a_broker_that_stands_still(self, broker, caplog):
        topic = broker.topic()
        await produce(broker, topic, range(5))
        member = Member(source(broker, topic, close_timeout=0.5))
        await member.read(5)
        broker.freeze()
        async with asyncio.timeout(HANG / 2):
            await member.close()
        broker.thaw()
