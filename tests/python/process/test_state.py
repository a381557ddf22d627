"""`state`: what a function puts there outlives its worker, and cuts the journal short."""

import asyncio
import os

import psutil
import pytest

from helpers import HANG, blocked, drain, until
from key_sums import collect
from recovering import fresh_pool, gate, kill_workers, links  # noqa: F401
from velo import stream_fn
from velo.errors import JournalFull

# What functions look at reaches the workers of the process's own supervisor.
pytestmark = pytest.mark.embedded
REPLAY = {"mode": "process", "recover": "replay", "workers": 1}


@stream_fn(**REPLAY)
async def counts(events, state):
    """Counts in its state."""
    async for event in events:
        state["count"] = state.get("count", 0) + 1
        yield state["count"], len(event)


def big(size=1000):
    return b"x" * size


async def test_it_is_a_dict_that_is_empty_at_first(mode):
    @stream_fn(mode=mode)
    async def shows(events, state):
        async for event in events:
            yield type(state), dict(state)
            state[event] = event

    assert await shows.run([1, 2]) == [(dict, {}), (dict, {1: 1})]


async def test_every_stream_has_its_own(mode):
    fn = counts.options(mode=mode)
    for _ in range(2):
        assert await fn.run([b"", b"a"]) == [(1, 0), (2, 1)]


async def test_by_hand():
    assert [r async for r in counts([b"abc"])] == [(1, 3)]
    state = {"count": 5}
    assert [r async for r in counts([b"abc"], state)] == [(6, 3)]
    assert state == {"count": 6}


async def test_which_functions_take_one():
    @stream_fn
    async def with_default(events, factor=2):
        async for event in events:
            yield event * factor

    @stream_fn
    async def by_name(events, state=None):
        async for _ in events:
            yield type(state)

    class Callable:
        async def __call__(self, events, state):
            async for _ in events:
                yield type(state)

    assert await with_default.run([2]) == [4]
    assert await by_name.run([1]) == [dict]
    assert await stream_fn(Callable()).run([1]) == [dict]
    with pytest.raises(TypeError, match="or two, the events and `state`"):

        @stream_fn
        async def three(events, state, more):
            yield

    with pytest.raises(TypeError, match="or two, the events and `state`"):

        @stream_fn
        async def another(events, factor):
            yield


async def test_a_snapshot_takes_the_place_of_the_events_before_it():
    async with counts.open() as stream:
        got = []
        for number in range(300):  # several times what is worth a snapshot
            await stream.send(big())
            got.append(await stream.recv())
        before = stream.metrics.bytes_in
        await kill_workers()
        await stream.send(big())
        assert (await stream.recv())[0] == 301
        assert before > 300_000
        assert stream.metrics.bytes_in - before < 150_000  # not from the beginning
        assert [count for count, _ in got] == list(range(1, 301))


async def test_many_snapshots_and_deaths_keep_everything_in_order():
    async with counts.open() as stream:
        got = []
        async for result in stream.feed(big(n % 3000) for n in range(2000)):
            got.append(result)
            if len(got) % 500 == 250:
                for link in links():
                    os.kill(link.pid, 9)
        assert got == [(n + 1, n % 3000) for n in range(2000)]


async def test_what_is_shared_within_it_stays_shared():
    @stream_fn(**REPLAY)
    async def shares(events, state):
        if not state:
            state["a"] = state["b"] = []
            state["types"] = {(1, 2): {3}, None: bytearray(b"x")}
        async for event in events:
            state["a"].append(len(event))
            yield state["a"] is state["b"], len(state["b"]), repr(state["types"])

    async with shares.open() as stream:
        first = None
        for number in range(1, 200):
            await stream.send(big())
            same, count, types = await stream.recv()
            first = first or types
            assert (same, count, types) == (True, number, first)
            if number == 150:
                await kill_workers()


async def test_the_memory_of_a_long_stream_is_bounded():
    """Here and in the worker."""
    async with counts.options(journal_limit=1 << 20).open() as stream:
        me = psutil.Process()
        payload = big(20_000)
        before = None
        for number in range(40):
            async for _ in stream.feed(payload for _ in range(250)):  # 5 MB each time
                pass
            if number == 5:
                before = me.memory_info().rss
        assert me.memory_info().rss - before < 50 << 20
        assert stream.metrics.events == 10_000


@pytest.mark.embedded
async def test_at_the_limit_sending_waits_for_a_snapshot():
    """The function has handled little, so that none was due."""

    @stream_fn(**REPLAY)
    async def slow(events, state):
        path = os.environ["VELO_TEST_GATE"]
        async for event in events:
            state["last"] = len(event)
            while not os.path.exists(path):
                await asyncio.sleep(0.002)
            yield len(event)

    async with slow.options(journal_limit=20_000).open() as stream:
        for _ in range(2):
            await stream.send(big(9_000))
        waiting = asyncio.create_task(stream.send(big(9_000)))
        assert await blocked(waiting)
        with open(os.environ["VELO_TEST_GATE"], "w"):
            pass
        got = [await stream.recv() for _ in range(2)]
        await asyncio.wait_for(waiting, HANG)
        got.append(await stream.recv())
        assert got == [9_000] * 3
        async for length in stream.feed(big(9_000 + n) for n in range(20)):
            got.append(length)
        assert got[3:] == [9_000 + n for n in range(20)]


async def test_at_the_limit_senders_and_receivers_do_not_wait_for_each_other():
    """Who receives before it sends the next event never waits for itself."""
    async with counts.options(journal_limit=4096).open() as stream:
        for number in range(200):
            await asyncio.wait_for(stream.send(big(3_000)), HANG)
            assert (await stream.recv())[0] == number + 1


async def test_an_event_larger_than_the_limit_goes_alone():
    async with counts.options(journal_limit=4096).open() as stream:
        for number in range(3):
            await asyncio.wait_for(stream.send(big(100_000)), HANG)
            assert (await stream.recv())[0] == number + 1


async def test_keyed_at_the_limit():
    fn = tell.options(journal_limit=8192)
    source = [(n % 3, big(3_000)) for n in range(90)]
    got = await collect(fn.keyed(source, key=0))
    assert got == {key: list(range(1, 31)) for key in range(3)}


@stream_fn(**REPLAY)
async def tell(events, state):
    async for _ in events:
        state["n"] = state.get("n", 0) + 1
        yield state["n"]


async def test_without_a_state_the_limit_is_an_error():
    @stream_fn(**REPLAY)
    async def lengths(events):
        async for event in events:
            yield len(event)

    async with lengths.options(journal_limit=20_000).open() as stream:
        for _ in range(2):
            await stream.send(big(9_000))
        with pytest.raises(JournalFull, match="second parameter") as info:
            await stream.send(big(9_000))
        error = info.value
        assert (error.stream, error.limit) == (stream.name, 20_000)
        assert 18_000 <= error.size <= 20_000
        with pytest.raises(JournalFull):
            await stream.send(big(9_000))
        await stream.send(b"small")  # it lives, and there is room for this
        await kill_workers()
        await stream.end()
        assert await drain(stream) == [9_000, 9_000, 5]


async def test_feeding_without_a_state_beyond_the_limit():
    @stream_fn(**REPLAY)
    async def lengths(events):
        async for event in events:
            yield len(event)

    got = []
    async with lengths.options(journal_limit=20_000).open() as stream:
        with pytest.raises(JournalFull):
            async for result in stream.feed(big(1_000) for _ in range(100)):
                got.append(result)
        await stream.end()
        got.extend(await drain(stream))
    assert got == [1_000] * len(got)
    assert 15 <= len(got) <= 20


async def test_what_cannot_travel_is_an_error_that_says_so():
    @stream_fn(**REPLAY)
    async def keeps(events, state):
        async for event in events:
            state["loop"] = asyncio.get_running_loop()
            yield len(event)

    with pytest.raises(TypeError, match="the function's `state` cannot be kept"):
        await keeps.run(big() for _ in range(200))


async def test_parts_of_a_chain_have_their_own():
    @stream_fn(**REPLAY)
    async def numbers(events, state):
        async for event in events:
            state["n"] = state.get("n", 0) + 1
            yield state["n"], event

    @stream_fn(**REPLAY)
    async def plain(events):
        async for event in events:
            yield event

    @stream_fn(**REPLAY)
    async def totals(events, state):
        async for number, event in events:
            state["n"] = state.get("n", 0) + number
            yield state["n"], len(event)

    chain = numbers | plain | totals
    expected = [(n * (n + 1) // 2, 1000) for n in range(1, 301)]
    assert await chain.options(mode="inline").run(big() for _ in range(300)) == expected
    async with chain.open() as stream:
        got = []
        for number in range(300):
            await stream.send(big())
            got.append(await stream.recv())
            if number in (100, 250):
                await kill_workers()
        assert got == expected
    state = {}
    assert [r async for r in chain([b"ab"], state)] == [(1, 2)]
    assert state == {0: {"n": 1}, 2: {"n": 1}}


async def test_an_idle_stream_is_asked_for_its_state():
    """The function waits for an event when a sender comes to need room."""
    async with counts.options(journal_limit=10_000).open() as stream:
        await stream.send(big(8_000))
        assert (await stream.recv())[0] == 1
        await until(lambda: stream.metrics.queued == 0)
        await asyncio.wait_for(stream.send(big(8_000)), HANG)
        assert (await stream.recv())[0] == 2


async def test_ticks_see_the_state_too():
    @stream_fn(**REPLAY)
    async def ticks(events, state):
        async for event in events.ticks(0.02):
            state["n"] = state.get("n", 0) + 1
            if isinstance(event, bytes):
                yield len(event)

    async with ticks.open() as stream:
        for _ in range(150):
            await stream.send(big())
            assert await stream.recv() == 1000
        await kill_workers()
        await stream.send(big(5))
        assert await stream.recv() == 5
