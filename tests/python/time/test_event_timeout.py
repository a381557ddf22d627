"""What a function may spend on one event."""

import asyncio
import contextlib
import time
import warnings

import pytest

import functions
from helpers import HANG, until
from velo import stream_fn
from velo.errors import EventTimeout, StallWarning, WorkerDied
from velo.testing import run_virtual
from workers import clients

LIMIT = 0.5
NEVER = 1000
# A limit that no step reaches in a test, on the clock that `moves_clock` moves.
LONG = 60.0


def sleeper(mode, **settings):
    return functions.sleeps.options(
        **{"mode": mode, "workers": 1, "event_timeout": LIMIT} | settings
    )


@pytest.fixture(autouse=True)
def fresh_pool():
    yield
    clients.shutdown()


async def test_the_stream_fails_alone_and_says_where_it_was(mode):
    sleeps = sleeper(mode)
    async with sleeps.open() as other, sleeps.open() as stream:
        await stream.send(0)
        await stream.send(NEVER)
        assert await stream.recv() == 0
        with pytest.raises(EventTimeout) as info:
            await asyncio.wait_for(stream.recv(), HANG)
        await other.send(0)
        assert await other.recv() == 0
    error = info.value
    assert isinstance(error, TimeoutError)
    assert (error.stream, error.event, error.seconds) == (stream.name, 2, LIMIT)
    assert f"`{stream.name}` was not done with event 2 within {LIMIT} s" in str(error)
    notes = "\n".join(error.__notes__)
    assert "in sleeps" in notes
    assert "in sleep\n" in notes


async def test_every_event_has_time_of_its_own(mode):
    """In all they take longer than any of them may."""
    moves_clock = functions.moves_clock.options(mode=mode, workers=1, event_timeout=LONG)
    assert await moves_clock.run([0.4 * LONG] * 4) == [0.4 * LONG] * 4


async def test_time_is_that_of_the_event_loop(mode):
    """What the tests of this page rely on that move its clock."""
    moves_clock = functions.moves_clock.options(mode=mode, workers=1, event_timeout=LONG)
    with pytest.raises(EventTimeout):
        await moves_clock.run([1.2 * LONG])


async def test_waiting_for_events_costs_nothing(mode):
    moves_clock = functions.moves_clock.options(mode=mode, workers=1)
    async with sleeper(mode, event_timeout=LONG).open() as stream:
        for _ in range(2):
            await moves_clock.run([2 * LONG])
            await stream.send(0)
            assert await stream.recv() == 0
            await until(lambda: stream.metrics.queued == 0)  # the function waits again


async def test_waiting_for_the_receiver_costs_nothing(mode, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode, workers=1, buffer=1, event_timeout=LONG)
    async def marks_each(events):
        async for event in events:
            functions.mark(path)  # in the same step as the result
            yield event

    moves_clock = functions.moves_clock.options(mode=mode, workers=1)
    async with marks_each.open() as stream:
        for number in range(2):
            await stream.send(number)  # the second one's result finds no room
        await until(lambda: functions.marks(path) == "xx")
        await moves_clock.run([3 * LONG])
        for number in range(3):
            assert await stream.recv() == number
            await stream.send(number + 2)


async def test_others_that_hold_the_loop_cost_nothing(mode):
    """One stream's budget never spends another's."""

    @stream_fn(mode=mode, workers=1)
    async def blocks(events):
        async for seconds in events:
            for _ in range(10):
                time.sleep(seconds / 10)
                await asyncio.sleep(0)
            yield "done"

    @stream_fn(mode=mode, workers=1, event_timeout=LIMIT)
    async def turns(events):
        async for count in events:
            for _ in range(count):
                await asyncio.sleep(0.001)
            yield "done"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        async with blocks.open() as first, turns.open() as second:
            await first.send(4 * LIMIT)
            await second.send(5)
            assert await asyncio.wait_for(second.recv(), HANG) == "done"
            assert await asyncio.wait_for(first.recv(), HANG) == "done"


async def test_finally_blocks_run(mode, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(mode=mode, event_timeout=LIMIT)
    async def cleans_up(events):
        async for _ in events:
            try:
                await asyncio.sleep(NEVER)
            finally:
                await asyncio.sleep(0)
                functions.mark(path)
            yield

    with pytest.raises(EventTimeout):
        await cleans_up.run([1])
    assert functions.marks(path) == "x"


@pytest.mark.parametrize("then", ["yields", "asks", "returns", "raises"])
async def test_a_function_that_ignores_it_has_failed_all_the_same(mode, then):
    @stream_fn(mode=mode, event_timeout=LIMIT)
    async def ignores(events):
        async for _ in events:
            try:
                await asyncio.sleep(NEVER)
            except asyncio.CancelledError:
                if then == "yields":
                    yield "late"
                if then == "returns":
                    return
                if then == "raises":
                    raise ValueError("own") from None
            yield "later"

    async with ignores.open() as stream:
        await stream.send(1)
        await stream.send(2)
        with pytest.raises(EventTimeout) as info:
            await asyncio.wait_for(stream.recv(), HANG)
    assert info.value.event == 1


async def test_a_function_that_does_not_end_is_left_behind(mode, tmp_path):
    """Its stream ends without it, a little later."""
    gate = tmp_path / "gate"

    @stream_fn(mode=mode, event_timeout=LIMIT)
    async def stays(events):
        async for _ in events:
            while not gate.exists():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)
            yield

    async with stays.open() as stream:
        await stream.send(1)
        with pytest.raises(EventTimeout):
            await asyncio.wait_for(stream.recv(), HANG)
    assert not gate.exists(), "it is still there when its stream has ended"
    gate.touch()


async def test_a_function_that_blocks_is_noticed_inline_when_it_asks_again():
    nap = functions.nap.options(mode="inline", event_timeout=LIMIT)
    async with nap.open() as stream:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await stream.send(2 * LIMIT)
            assert await stream.recv() == 2 * LIMIT
        with pytest.raises(EventTimeout) as info:
            await stream.recv()
        assert info.value.event == 1


async def test_a_function_that_blocks_its_worker_is_killed_with_it():
    nap = functions.nap.options(mode="process", workers=1, event_timeout=LIMIT)
    async with nap.open() as stream:
        await stream.send(NEVER)
        warns = pytest.warns(StallWarning, match="`event_timeout` allows")
        with warns, pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(stream.recv(), HANG)
    assert (info.value.culprit, info.value.event) == (True, 1)
    assert "`event_timeout`" in info.value.why
    assert "in nap" in info.value.stack


async def test_what_it_awaited_before_counts_for_the_step_that_blocks():
    @stream_fn(mode="process", workers=1, event_timeout=LONG)
    async def waits_and_blocks(events):
        async for _ in events:
            functions.move_clock(LONG - 2)
            await asyncio.sleep(0)
            time.sleep(NEVER)
            yield

    with pytest.warns(StallWarning), pytest.raises(WorkerDied) as info:
        await asyncio.wait_for(waits_and_blocks.run([1]), HANG)
    left = float(info.value.why.split("of which ")[1].split(" s")[0])
    assert left <= 2


async def test_with_a_helper_task_that_takes_the_events(mode):
    """Whoever takes an event, it is the stream's."""

    @stream_fn(mode=mode, event_timeout=LIMIT)
    async def delegates(events):
        queue = asyncio.Queue()

        async def take():
            async for event in events:
                await queue.put(event)
                await asyncio.sleep(event)

        task = asyncio.create_task(take())
        while True:
            yield await queue.get()
            if task.done():
                return

    async with delegates.open() as stream:
        await stream.send(NEVER)
        assert await stream.recv() == NEVER
        with pytest.raises(EventTimeout):
            await asyncio.wait_for(stream.recv(), HANG)


def test_a_loop_whose_time_is_turned():
    """Under a virtual clock the limit is of its time, and is reached at once."""
    sleeps = functions.sleeps.options(event_timeout=3600.0)
    assert run_virtual(sleeps.run([3000.0, 3000.0])) == [3000.0, 3000.0]
    with pytest.raises(EventTimeout):
        run_virtual(sleeps.run([3000.0, 4000.0]))
