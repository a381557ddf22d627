"""Runs that share a source: each partition is a shard, which moves with its state."""

import asyncio
import contextlib
import logging
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoints import opened
from helpers import HANG, until
from shared_topic import Ledger, MemberSource, Topic
from velo import connect, stream_fn
from velo._api import group_run as group_runs
from velo._api import shard as shards
from velo._api.shard_source import ShardSource
from velo._checkpoint.commits import Commits
from velo._checkpoint.remote import Remote
from velo._core import dumps
from velo._diagnostics import failpoints
from velo._diagnostics.source_figures import sources
from velo.cli.connected.merged import Merged
from velo.connect.errors import ConnectError, Superseded
from velo.connect.memory import MemorySink
from velo.errors import CheckpointError

obstore = pytest.importorskip("obstore")
# Its threads and their descriptors last from the first call on, so that they are no leak of a test.
obstore.list(obstore.store.MemoryStore()).collect()


@stream_fn
async def counts(events, state):
    """Counts per key, and says when its input ends."""
    async for event in events:
        if event.get("fails"):
            raise ValueError("refused")
        while event.get("waits") and not event["waits"].exists():
            await asyncio.sleep(0.001)
        state["n"] = state.get("n", 0) + 1
        yield state["n"]
    yield "end"


@stream_fn
async def rows(events, state):
    """Counts per key, in rows of a table."""
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        yield {"k": event["k"], "n": state["n"]}


class Program:
    """A run, as if it were a program of its own."""

    def __init__(self, topic, ledger, store, fn=counts, key=connect.record_key, **settings):
        self.source = MemberSource(topic)
        self.run = fn.keyed(self.source, key=key, max_pending=20)
        settings = {"checkpoint": store, "checkpoint_every": 0.01, **settings}
        self.task = asyncio.create_task(self.run.into(ledger, **settings))

    async def stop(self):
        self.run.stop()
        return await self.task

    async def kill(self):
        """End it without a tick."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
def store(tmp_path):
    return f"{(tmp_path / 'store').as_uri()}?cache={tmp_path / 'cache'}"


@pytest.fixture
async def topic():
    return Topic(4)


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
async def program(topic, ledger, store):
    """Start programs, and end them."""
    started = []

    def start(sink=ledger, **settings):
        started.append(Program(topic, sink, store, **settings))
        return started[-1]

    yield start
    for each in started:
        if not each.task.done():
            await each.kill()
    assert all(each.source.is_closed for each in started)
    assert ledger.opened == []


def events(key, count, **more):
    return [{"k": key, **more}] * count


async def shown(ledger, **counts):
    """Wait until keys have so many results, which are the numbers from 1."""
    found = ledger.shown
    await until(
        lambda: all(len(found[key.encode()]) >= n for key, n in counts.items()),
        describe=lambda: str(found),
    )
    for key, count in counts.items():
        assert found[key.encode()] == list(range(1, count + 1))


async def test_a_partition_moves_with_the_state_of_its_keys(topic, ledger, program, mode):
    first = program(fn=counts.options(mode=mode))
    await topic.put(0, *events("a", 30))
    await topic.put(1, *events("b", 30))
    await first.source.give(0, 1)
    await shown(ledger, a=30, b=30)
    await topic.put(1, *events("b", 5))
    await first.source.take(1)  # what was read is finished first
    assert topic.committed["t", 1] >= 29
    second = program(fn=counts.options(mode=mode))
    await second.source.give(1)
    await topic.put(0, *events("a", 5))
    await topic.put(1, *events("b", 5))
    await shown(ledger, a=35, b=40)
    assert second.source.places[0][1] >= 29
    await first.stop()
    await second.source.give(0)
    await topic.put(0, *events("a", 5))
    await shown(ledger, a=40)
    await second.stop()


async def test_a_partition_comes_back(topic, ledger, program):
    first = program()
    for number in range(1, 4):
        await first.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=number * 10)
        await first.source.take(0)
    assert [at for _, at in first.source.places] == [None, 9, 19]
    await first.stop()


async def test_a_member_that_dies_is_taken_over_at_its_last_tick(topic, ledger, program):
    first = program()
    await first.source.give(0)
    await topic.put(0, *events("a", 30))
    await shown(ledger, a=30)
    await topic.put(0, *events("a", 30))
    await first.kill()
    second = program()
    await second.source.give(0)
    await shown(ledger, a=60)
    await second.stop()


async def test_what_is_lost_is_dropped_without_a_tick(topic, ledger, program, tmp_path):
    gate = tmp_path / "gate"
    first = program()
    await first.source.give(0, 1)
    await topic.put(0, *events("a", 30))
    await shown(ledger, a=30)
    await topic.put(0, *events("a", 10, waits=gate))
    await until(lambda: first.run.figures.read == 40)
    await first.source.lose(0)
    second = program()
    await second.source.give(0)
    gate.touch()
    await shown(ledger, a=40)
    await topic.put(1, *events("b", 10))  # the first one goes on with what it has
    await shown(ledger, b=10)
    await first.stop()
    await second.stop()


async def test_stop_ends_no_key(topic, ledger, program, mode):
    first = program(fn=counts.options(mode=mode))
    await first.source.give(0, 1)
    await topic.put(0, *events("a", 15))
    await topic.put(1, *events("b", 15))
    await until(lambda: first.run.figures.read == 30)
    figures = await first.stop()
    assert (figures.read, figures.results) == (30, 30)
    second = program(fn=counts.options(mode=mode))
    await second.source.give(0, 1)
    await topic.put(0, *events("a", 5))
    await topic.put(1, *events("b", 5))
    await shown(ledger, a=20, b=20)
    await second.stop()


async def test_at_the_end_of_the_source_keys_end(topic, ledger, program):
    await topic.put(0, *events("a", 15))
    first = program()
    await first.source.give(0, 1)
    await until(lambda: first.run.figures.read == 15)
    first.source.end()
    await first.task
    assert ledger.shown[b"a"] == [*range(1, 16), "end"]


async def test_the_error_of_one_shard_ends_the_run(topic, ledger, program):
    first = program(checkpoint_every=60)
    await first.source.give(0, 1)
    await topic.put(0, *events("a", 15))
    await until(lambda: first.run.figures.read == 15)
    await topic.put(1, *events("b", 1, fails=True))
    with pytest.raises(ValueError, match="refused"):
        await first.task
    assert not ledger.shown[b"a"]  # no tick was made of what the others had in hand


async def test_a_slow_partition_is_paused_and_no_other(topic, ledger, program, tmp_path):
    gate = tmp_path / "gate"
    first = program()
    await first.source.give(0, 1)
    await topic.put(0, *events("a", 500, waits=gate))
    await until(lambda: first.source.paused == {("t", 0)})
    await topic.put(1, *events("b", 500))
    await shown(ledger, b=500)
    gate.touch()
    await shown(ledger, a=500)
    await first.stop()


async def test_what_waits_for_a_shard_is_bounded(topic):
    member = MemberSource(topic)
    source = ShardSource(member, ("t", 0), lambda positions: None)
    items = aiter(source)
    for _ in range(5):
        source.put([1])
    assert member.paused == {("t", 0)}
    assert [await anext(items) for _ in range(2)] == [[1], [1]]
    assert not member.paused
    # Its driver and the records that wait both hold it, until neither does.
    source.pause([("t", 0)])
    source.put([1])
    source.put([1])
    source.resume([("t", 0)])
    assert member.paused == {("t", 0)}
    await anext(items)
    await anext(items)
    assert not member.paused


async def test_figures_are_those_of_one_source(topic, ledger, program, mode):
    first = program(fn=counts.options(mode=mode))
    assert not first.run._is_reading
    await first.source.give(0, 1)
    assert first.run._is_reading
    await topic.put(0, *events("a", 10))
    await topic.put(1, *events("b", 20))
    await shown(ledger, a=10, b=20)
    (shown_source,) = [each for each in sources() if each[1] == "topic t"]
    function, _, figures = shown_source
    assert (function, figures.records) == ("counts", 30)
    await until(lambda: figures.commits and topic.committed)
    flows = first.run._flows()
    assert {partition: flow.read for partition, flow in flows.items()} == {
        ("t", 0): 10,
        ("t", 1): 20,
    }
    await first.source.take(1)
    assert set(first.run._flows()) == {("t", 0)}
    await first.stop()
    assert not first.run._is_reading
    assert "topic t" not in {each[1] for each in sources()}


async def test_each_shard_has_max_concurrent_keys(topic, ledger, program, mode):
    first = program(fn=counts.options(mode=mode, max_concurrent=1), keys="unload")
    await first.source.give(0, 1, 2)
    for number, key in enumerate("abc"):
        await topic.put(number, *events(key, 5))
    await shown(ledger, a=5, b=5, c=5)
    await first.stop()


class TestZombies:
    async def test_it_waits_for_its_group_and_goes_on_with_the_rest(
        self, topic, ledger, program, mode, caplog
    ):
        zombie = program(fn=counts.options(mode=mode), checkpoint_every=60)
        await zombie.source.give(0, 1)
        await topic.put(0, *events("a", 10))
        await until(lambda: zombie.run.figures.results == 10)
        second = program(fn=counts.options(mode=mode))
        await second.source.give(0)
        await shown(ledger, a=10)
        with caplog.at_level(logging.WARNING):
            await zombie.source.take(0)  # its last tick comes too late
        assert "t-0" in caplog.text
        await topic.put(1, *events("b", 10))
        await until(lambda: zombie.run.figures.results == 20)
        await zombie.stop()
        await shown(ledger, a=10, b=10)
        await second.stop()

    async def test_one_that_is_told_to_stop_does_not_wait_for_a_word(self, topic, ledger, program):
        zombie = program(checkpoint_every=60)
        await zombie.source.give(0)
        await topic.put(0, *events("a", 10))
        await until(lambda: zombie.run.figures.results == 10)
        second = program()
        await second.source.give(0)
        await shown(ledger, a=10)
        await zombie.stop()
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=20)
        await second.stop()

    async def test_without_a_word_of_the_group_it_ends(
        self, topic, ledger, program, monkeypatch, store
    ):
        monkeypatch.setattr(shards, "_GRACE", 0.01)
        zombie = program()
        await zombie.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=10)
        topic.owners.clear()
        for name in ledger.writers:
            ledger.writers[name] = "another"
        await topic.put(0, *events("a", 10))
        with pytest.raises(Superseded, match="another program"):
            await zombie.task


class TestLateOpeners:
    """A member begins to open a shard, and loses the partition before it has claimed it."""

    @pytest.fixture
    def gate(self):
        """Hold up whoever comes first; set `open` to let it go on."""

        class Gate:
            def __init__(self):
                self.reached, self.open = threading.Event(), threading.Event()

            def __call__(self):
                if not self.reached.is_set():
                    self.reached.set()
                    self.open.wait()

        gate = Gate()
        yield gate
        gate.open.set()

    async def test_it_claims_nothing_that_it_has_lost(
        self, topic, ledger, program, gate, monkeypatch
    ):
        bring, claim, claims = Remote.bring, Commits.claim, []

        def held_up(*arguments):
            found = bring(*arguments)
            gate()
            return found

        def noted(*arguments, **more):
            claims.append(arguments)
            return claim(*arguments, **more)

        monkeypatch.setattr(Remote, "bring", held_up)
        monkeypatch.setattr(Commits, "claim", noted)
        late, owner = program(), program()
        late.source.assign(0)
        await until(gate.reached.is_set)
        losing = asyncio.create_task(late.source.lose(0))
        await until(lambda: not late.run._running._shards)
        await owner.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=10)
        gate.open.set()
        await losing
        await late.stop()
        assert len(claims) == 1
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=20)
        assert len(owner.source.places) == 1
        await owner.stop()

    async def test_the_owner_takes_over_again_what_it_has_claimed_late(
        self, topic, ledger, program, gate, monkeypatch, caplog, mode
    ):
        def hook(area, step):
            if (area, step) == ("claim", 1):
                gate()

        monkeypatch.setattr(failpoints, "hook", hook)
        fn = counts.options(mode=mode)
        late, owner = program(fn=fn), program(fn=fn)
        late.source.assign(0)
        await until(gate.reached.is_set)
        losing = asyncio.create_task(late.source.lose(0))
        await owner.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=10)
        gate.open.set()
        await losing
        await until(lambda: not late.run._running._leaving)  # it has claimed
        with caplog.at_level(logging.WARNING):
            await topic.put(0, *events("a", 10))
            await shown(ledger, a=20)
        assert "takes it over again" in caplog.text
        assert [at for _, at in owner.source.places] == [None, 9]
        await late.stop()
        await owner.stop()

    async def test_what_is_lost_meanwhile_holds_up_no_other_shard(
        self, topic, ledger, program, gate, monkeypatch, mode
    ):
        first = program(fn=counts.options(mode=mode))
        await first.source.give(1)
        bring = Remote.bring

        def held_up(*arguments):
            gate()
            return bring(*arguments)

        monkeypatch.setattr(Remote, "bring", held_up)
        first.source.assign(0)
        await until(gate.reached.is_set)
        async with asyncio.timeout(HANG):
            await first.source.lose(0)
        await topic.put(1, *events("b", 10))
        await shown(ledger, b=10)
        # The next one of the partition waits for that opening, also when it goes by itself.
        first.source.assign(0)
        taking = asyncio.create_task(first.source.take(0))
        await until(lambda: ("t", 0) not in first.run._running._shards)
        assert not taking.done()
        gate.open.set()
        await taking
        await first.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=10)
        await first.stop()

    async def test_an_owner_does_not_take_over_for_ever(self, topic, ledger, program, monkeypatch):
        monkeypatch.setattr(shards, "_GRACE", 0.5)
        first = program()
        await first.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=10)

        class Takes(dict):
            def __getitem__(self, name):
                return "another"

        ledger.writers = Takes(ledger.writers)
        await topic.put(0, *events("a", 10))
        with pytest.raises(Superseded, match="another program"):
            await first.task
        assert len(first.source.places) == 1 + group_runs._MOST_AGAIN


class TestSinks:
    async def test_a_plain_sink_is_shared(self, topic, program, mode):
        class Plain:
            name = "plain"

            def __init__(self):
                self.results = []
                self.busy = 0

            async def write(self, results):
                self.busy += 1
                assert self.busy == 1
                await asyncio.sleep(0)
                self.results += results
                self.busy -= 1

            async def flush(self):
                await self.write([])

        sink = Plain()
        first = program(fn=counts.options(mode=mode), sink=sink)
        await first.source.give(0, 1, 2)
        for number, key in enumerate("abc"):
            await topic.put(number, *events(key, 50))
        await until(lambda: len(sink.results) == 150)
        for key in (b"a", b"b", b"c"):
            assert [n for k, n in sink.results if k == key] == list(range(1, 51))
        await first.stop()

    async def test_rows_of_each_shard_are_stored_once(self, topic, program, postgres):
        psycopg = pytest.importorskip("psycopg")
        table = f"shards_{secrets.token_hex(6)}"
        login = {"user": postgres.admin, "password": postgres.admin_password}
        async with await psycopg.AsyncConnection.connect(postgres.dsn(), autocommit=True) as read:
            await read.execute(f"create table {table} (id bigserial, k text, n int)")

            async def stored():
                rows = await read.execute(f"select k, n from {table} order by id")
                return await rows.fetchall()

            def start(**settings):
                sink = connect.postgres(f"127.0.0.1:{postgres.port}", "postgres", table, **login)
                return program(fn=rows, sink=sink, **settings)

            zombie = start(checkpoint_every=60)
            await zombie.source.give(0, 1)
            await topic.put(0, *events("a", 10))
            await topic.put(1, *events("b", 10))
            await until(lambda: zombie.run.figures.results == 20)
            second = start()
            await second.source.give(0)
            while len(await stored()) < 10:
                await asyncio.sleep(0.01)
            await zombie.source.take(0)  # its last tick comes too late
            await zombie.source.take(1)
            await second.source.give(1)
            await topic.put(1, *events("b", 10))
            while len(await stored()) < 30:
                await asyncio.sleep(0.01)
            await zombie.stop()
            await second.stop()
            found = await stored()
        assert [n for k, n in found if k == "a"] == list(range(1, 11))
        assert [n for k, n in found if k == "b"] == list(range(1, 21))

    async def test_one_that_takes_back_is_refused(self, topic, store):
        run = counts.keyed(MemberSource(topic), key=connect.record_key)
        with pytest.raises(ValueError, match=r"memory cannot take the results of a group.*Kafka"):
            await run.into(MemorySink(), checkpoint=store)


class TestPartitionsThatAreAdded:
    WARNED = "the topic `t` has 6 partitions, and had 4"

    async def test_a_running_member_warns_once(self, topic, ledger, program, mode, caplog):
        first = program(fn=counts.options(mode=mode))
        await first.source.give(0, 1)
        topic.grow(6)
        await first.source.give(4, 5)
        await first.source.take(0)
        await first.source.give(0)
        await first.stop()
        assert caplog.text.count(self.WARNED) == 1

    async def test_a_member_that_starts_later_warns(self, topic, ledger, program, caplog):
        first = program()
        await first.source.give(0)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=10)
        await first.stop()
        topic.grow(6)
        second = program()
        await second.source.give(0, 5)
        await topic.put(0, *events("a", 10))
        await shown(ledger, a=20)
        await second.stop()
        assert caplog.text.count(self.WARNED) == 1
        caplog.clear()
        third = program()  # the next tick has noted it
        await third.source.give(0, 5)
        await third.stop()
        assert "partitions" not in caplog.text

    async def test_over_has_no_keys_that_could_move(self, topic, ledger, store, caplog):
        source = MemberSource(topic)
        run = counts.over(source)
        task = asyncio.create_task(run.into(ledger, checkpoint=store, checkpoint_every=0.01))
        await source.give(0)
        topic.grow(6)
        await source.give(5)
        run.stop()
        await task
        assert "partition" not in caplog.text


class TestKeys:
    async def test_a_key_of_the_event_is_warned_of_once(self, topic, ledger, program, mode, caplog):
        with caplog.at_level(logging.WARNING):
            first = program(fn=counts.options(mode=mode), key="k")
            await first.source.give(0, 1)
            await first.stop()
        assert caplog.text.count("all records of a key have to be in one partition") == 1

    async def test_the_records_own_key_is_not(self, topic, ledger, program, caplog):
        with caplog.at_level(logging.WARNING):
            first = program()
            await first.source.give(0)
            await first.stop()
        assert "one partition" not in caplog.text


class TestCheckpoints:
    @pytest.mark.parametrize("in_folder", [False, True], ids=["in a store", "in a folder"])
    async def test_one_for_the_whole_source_is_not_begun_anew(
        self, topic, ledger, program, store, tmp_path, in_folder, mode
    ):
        whole = str(tmp_path / "store") if in_folder else store
        with opened(whole, "counts") as checkpoint:
            await checkpoint.commit(1, {b"a": dumps({"n": 5})}, {("t", 0): 4}, {})
        first = program(fn=counts.options(mode=mode))
        how = "the folder itself" if in_folder else "without `group`"
        with pytest.raises(CheckpointError, match=f"one checkpoint for all partitions.*{how}"):
            await first.task
        assert not first.source.is_shared

    async def test_those_of_a_group_are_not_begun_anew_as_one(self, topic, ledger, program, store):
        first = program()
        await first.source.give(0)
        await first.stop()
        with (
            pytest.raises(CheckpointError, match=r"checkpoints of a group.*`t-0`"),
            opened(store, "counts"),
        ):
            pass

    async def test_slow_ones_hold_up_nothing_else(self, topic, ledger, program, monkeypatch, mode):
        first = program(fn=counts.options(mode=mode))
        await first.source.give(0)
        bring, gate, waiting = Remote.bring, threading.Event(), []

        def slow(*arguments):
            waiting.append(1)
            gate.wait()
            return bring(*arguments)

        monkeypatch.setattr(Remote, "bring", slow)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        try:
            first.source.assign(1, 2, 3)
            await until(lambda: len(waiting) == 3)
            async with asyncio.timeout(HANG):
                assert await asyncio.to_thread(lambda: "free") == "free"
                await first.source.take(0)  # which closes its checkpoint
        finally:
            gate.set()
        await until(lambda: len(first.source.places) == 4)
        await first.stop()
        assert not [t.name for t in threading.enumerate() if t.name.startswith("velo checkpoint")]


async def test_over_has_a_stream_for_each_partition(topic, ledger, store):
    source = MemberSource(topic)
    run = counts.over(source)
    task = asyncio.create_task(run.into(ledger, checkpoint=store, checkpoint_every=0.01))
    await source.give(0, 1)
    await topic.put(0, *events("a", 5), *events("b", 5))
    await topic.put(1, *events("c", 5))
    await until(lambda: len(ledger.shown[None]) == 15)
    assert sorted(ledger.shown[None]) == sorted([*range(1, 11), *range(1, 6)])
    run.stop()
    await task


async def test_several_inputs_are_refused(topic, ledger, store):
    run = counts.keyed(Merged([MemberSource(topic), MemberSource(topic)]), key=connect.record_key)
    with pytest.raises(ConnectError, match="read each input by a run of its own"):
        await run.into(ledger, checkpoint=store)
