"""`events.ticks(seconds)`, and deadlines around `anext(events)`."""

import asyncio
import contextlib
import copy
import heapq
import pickle

import pytest

from helpers import HANG, drain
from velo import stream_fn
from velo._function.event_iterator import pulled
from velo.events import TICK


@stream_fn
async def ticking(events):
    """What it reads, ticks included, and how it ended."""
    async for event in events.ticks(0.02):
        yield event
    yield "end"


@stream_fn
async def gaps(events):
    """Bursts of events, closed by a pause."""
    burst = []
    async for event in events.ticks(0.03):
        if event is not TICK:
            burst.append(event)
        elif burst:
            yield burst
            burst = []
    yield ("left", burst)


@stream_fn
async def passes(events):
    async for event in events:
        yield event


@stream_fn
async def deadlines(events):
    """Waits for each event for a while, and says when none came."""
    while True:
        try:
            async with asyncio.timeout(0.02):
                event = await anext(events)
        except TimeoutError:
            yield "late"
        except StopAsyncIteration:
            return
        else:
            yield event


@stream_fn
async def peeks(events):
    """One event or tick at a time, by a new iteration each."""
    while True:
        async for event in events.ticks(0.02):
            yield event
            break
        else:
            return


async def test_a_tick_when_nothing_comes(mode):
    async with ticking.options(mode=mode).open() as stream:
        assert await stream.recv() is TICK
        assert await stream.recv() is TICK
        await stream.send(1)
        while (result := await stream.recv()) is TICK:
            pass
        assert result == 1
        assert await stream.recv() is TICK
        await stream.end()
        assert [result for result in await drain(stream) if result is not TICK] == ["end"]


async def test_no_tick_while_events_come(mode):
    results = await ticking.options(mode=mode).run(range(10_000))
    assert [result for result in results if result is not TICK] == [*range(10_000), "end"]


async def test_a_pause_closes_what_came_before(mode):
    async with gaps.options(mode=mode).open() as stream:
        await stream.send_batch([1, 2])
        first = await stream.recv()
        await stream.send(3)
        rest = first + await stream.recv()
        while len(rest) < 3:
            rest += await stream.recv()
        assert rest == [1, 2, 3]
        await stream.end()
        assert await drain(stream) == [("left", [])]


async def test_leaving_the_iteration_loses_nothing(mode):
    async with peeks.options(mode=mode).open() as stream:
        got = []
        for number in range(20):
            await stream.send(number)
            got.append(await stream.recv())
        await stream.end()
        got += await drain(stream)
        assert [event for event in got if event is not TICK] == list(range(20))


async def test_a_deadline_around_the_next_event_loses_nothing(mode):
    async with deadlines.options(mode=mode).open() as stream:
        assert await stream.recv() == "late"
        got = []
        for number in range(20):
            await stream.send(number)
            got.append(await stream.recv())
        await stream.end()
        got += await drain(stream)
        assert [event for event in got if event != "late"] == list(range(20))


async def test_ticks_are_no_use_of_the_stream(mode):
    """Its idle timeout ends the input while it ticks."""
    async with ticking.options(mode=mode, timeout=0.2).open() as stream:
        await stream.send(1)
        async with asyncio.timeout(HANG):
            while not stream.closed:
                await asyncio.sleep(0.005)
        assert (await drain(stream))[-1] == "end"


async def test_ticks_of_a_later_part(mode):
    chain = passes.options(mode=mode) | gaps.options(mode=mode)
    async with chain.open() as stream:
        await stream.send(1)
        assert await stream.recv() == [1]
        await stream.send(2)
        assert await stream.recv() == [2]
        await stream.end()
        assert await drain(stream) == [("left", [])]


@pytest.mark.workers
async def test_a_tick_goes_through_a_chain_as_itself(mode):
    chain = ticking.options(mode=mode) | passes.options(mode="process")
    async with chain.open() as stream:
        assert await stream.recv() is TICK


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
async def test_wrong_seconds(mode, seconds):
    @stream_fn(mode=mode)
    async def wrong(events):
        async for event in events.ticks(seconds):
            yield event

    with pytest.raises(ValueError, match="`seconds` must be more than 0"):
        await wrong.run([1])


async def test_seconds_that_are_no_number(mode):
    @stream_fn(mode=mode)
    async def wrong(events):
        async for event in events.ticks("1"):
            yield event

    with pytest.raises(TypeError):
        await wrong.run([1])


async def test_a_dropped_iteration_leaves_no_timer():
    """The loop keeps nothing of an iteration that is over."""

    @stream_fn
    async def once(events):
        async for event in events.ticks(3600):
            if event != "end":
                yield event
            else:
                break
        async for event in events:
            yield event

    async with once.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        await stream.send("end")
        await stream.send(2)
        assert await stream.recv() == 2
        loop = asyncio.get_running_loop()
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]
        assert not [timer for timer in timers if timer.when() > loop.time() + 1800]


def test_a_stream_is_cancelled_whatever_the_timer_of_its_ticks_does():
    """The exception that leaves the function destroys the iteration, and with it its timer."""
    ends = []

    class Timer(asyncio.TimerHandle):
        def cancel(self):
            with contextlib.suppress(ZeroDivisionError):
                1 / 0  # noqa: B018 - an exception of its own
            super().cancel()

    class Loop(asyncio.SelectorEventLoop):
        def call_at(self, when, callback, *args, context=None):
            timer = Timer(when, callback, args, self, context)
            heapq.heappush(self._scheduled, timer)
            timer._scheduled = True
            return timer

    @stream_fn
    async def waits(events):
        try:
            async for _ in events.ticks(5.0):
                yield "waits"
        except BaseException as error:
            ends.append(type(error))
            raise

    async def main():
        with pytest.raises(KeyError):
            async with waits.open() as stream:
                await stream.send(1)
                assert await stream.recv() == "waits"
                await asyncio.sleep(0)
                raise KeyError

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert ends == [asyncio.CancelledError]


def test_there_is_one_tick():
    assert copy.deepcopy(TICK) is copy.copy(TICK) is pickle.loads(pickle.dumps(TICK)) is TICK
    assert repr(TICK) == "TICK"


async def test_by_hand():
    """A function that is called directly reads any iterable, and ticks there too."""
    assert [result async for result in passes([1, 2])] == [1, 2]
    assert [result async for result in ticking([1, 2])] == [1, 2, "end"]
    queue = asyncio.Queue()

    async def source():
        while (event := await queue.get()) is not None:
            yield event

    results = ticking(source())
    assert await anext(results) is TICK
    queue.put_nowait(1)
    while (result := await anext(results)) is TICK:
        pass
    assert result == 1
    queue.put_nowait(None)
    assert [result async for result in results if result is not TICK] == ["end"]


async def test_by_hand_leaving_the_ticks_loses_nothing():
    queue = asyncio.Queue()

    async def source():
        while (event := await queue.get()) is not None:
            yield event

    events = pulled(source())
    async for event in events.ticks(0.01):
        assert event is TICK
        break
    for event in (1, 2, None):
        queue.put_nowait(event)
    assert [event async for event in events] == [1, 2]
