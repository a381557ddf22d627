"""`feed`: sending and receiving together."""

import asyncio
import contextlib
import time

import pytest

import functions
from functions import OwnError
from helpers import HANG, blocked, drain, until, until_sync
from velo import stream_fn
from velo.errors import StreamClosed

pytestmark = pytest.mark.every_backend

KINDS = ("list", "range", "generator", "async generator", "async iterator")


class AsyncNumbers:
    """An async iterator that is no generator."""

    def __init__(self, events):
        self.events = iter(events)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        for event in self.events:
            return event
        raise StopAsyncIteration


def source_of(kind, events):
    async def agen():
        for event in events:
            yield event

    return {
        "list": lambda: list(events),
        "range": lambda: events if isinstance(events, range) else tuple(events),
        "generator": lambda: (event for event in events),
        "async generator": agen,
        "async iterator": lambda: AsyncNumbers(events),
    }[kind]()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


async def test_feed(way, kind):
    async with way.open(functions.echo) as stream:
        got = [result async for result in stream.feed(source_of(kind, range(1000)))]
        assert got == list(range(1000))


async def test_feed_more_than_the_buffer(way, kind):
    async with way.open(functions.echo, buffer=3) as stream:
        got = [result async for result in stream.feed(source_of(kind, range(200)))]
        assert got == list(range(200))


async def test_feed_nothing(way, kind):
    async with way.open(functions.echo) as stream:
        assert [result async for result in stream.feed(source_of(kind, []))] == []
        await stream.send(1)
        assert await stream.recv() == 1


async def test_feed_twice_keeps_state(way, kind):
    async with way.open(functions.running_sum) as stream:
        assert [r async for r in stream.feed(source_of(kind, [1, 2]))] == [1, 3]
        assert [r async for r in stream.feed(source_of(kind, [3]))] == [6]
        await stream.send(4)
        assert await stream.recv() == 10


async def test_feed_gives_every_result_of_every_event(way, kind):
    """Many results for the last event, none for others: the iteration ends after all of them."""
    repeat = way.fn(functions.repeat, buffer=4)
    for counts in ([0, 0, 0], [0, 30], [30, 0], [7] * 9):
        async with repeat.open() as stream:
            got = [result async for result in stream.feed(source_of(kind, counts))]
            assert got == [(count, number) for count in counts for number in range(count)]


async def test_feed_waits_for_a_slow_last_result(way, kind):
    @stream_fn
    async def slow(events):
        async for event in events:
            await asyncio.sleep(0.1)
            yield event

    async with way.open(slow) as stream:
        assert [r async for r in stream.feed(source_of(kind, [1, 2]))] == [1, 2]


async def test_feed_leaves_the_stream_open(way, kind):
    async with way.open(functions.after_loop) as stream:
        assert [r async for r in stream.feed(source_of(kind, [1, 2]))] == []
        assert not stream.closed
        await stream.end()
        assert await drain(stream) == [1, 2, "done"]


async def test_feed_to_a_function_that_returns_early(way, kind):
    async with way.open(functions.first_two, buffer=4) as stream:
        got = [r async for r in stream.feed(source_of(kind, range(100)))]
        assert got == [0, 1]


async def test_feed_to_a_function_that_fails(way, kind):
    async with way.open(functions.fails, buffer=4) as stream:
        got = []
        with pytest.raises(OwnError):
            async for result in stream.feed(source_of(kind, [1, 2, "own", *range(100)])):
                got.append(result)
        assert got == [1, 2]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_failing_source_is_raised_and_cancels(way, asynchronous, tmp_path):
    path = str(tmp_path / "marks")

    def plain():
        yield path
        yield 1
        raise LookupError("source")

    async def asynced():
        for event in (path, 1):
            yield event
        raise LookupError("source")

    async with way.open(functions.marks_finally) as stream:
        with pytest.raises(LookupError, match="source"):
            async for _ in stream.feed(asynced() if asynchronous else plain()):
                pass
        with pytest.raises(StreamClosed):
            await stream.send(1)
    assert functions.marks(path) in ("", "(f)")


async def test_source_that_fails_at_once(way):
    def plain():
        raise LookupError("source")
        yield

    async with way.open(functions.echo) as stream:
        with pytest.raises(LookupError):
            async for _ in stream.feed(plain()):
                pass
        assert stream.closed


async def test_break_out_of_feed_keeps_what_was_sent(way, kind):
    """Every event that was taken from the source is worked on; its result can be received."""
    taken = []

    def noted():
        for number in range(50):
            taken.append(number)
            yield number

    async def noted_async():
        for number in noted():
            yield number

    if kind not in ("generator", "async generator"):
        pytest.skip("the source must tell what was taken")
    source = noted() if kind == "generator" else noted_async()
    async with way.open(functions.echo, buffer=8) as stream:
        got = []
        feeding = stream.feed(source)
        async for result in feeding:
            got.append(result)
            if result == 3:
                break
        if hasattr(feeding, "aclose"):
            await feeding.aclose()
        await stream.end()
        got.extend(await drain(stream))
        assert got == taken
        assert len(taken) < 50


async def test_break_out_of_feed_leaves_the_stream_usable(way, kind):
    async with way.open(functions.echo, buffer=8) as stream:
        async for _ in stream.feed(source_of(kind, range(50))):
            break

        async def finish():  # an async source may have filled every queue
            await stream.send("after")
            await stream.end()

        finishing = asyncio.create_task(finish())
        await until(lambda: stream.closed or stream.metrics.queued >= 8)
        got = await drain(stream)
        await finishing
        assert got[-1] == "after"
        numbers = got[:-1]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_break_and_feed_again(way, kind):
    async with way.open(functions.echo, buffer=8) as stream:
        async for _ in stream.feed(source_of(kind, range(5))):
            break
        got = [r async for r in stream.feed(source_of(kind, ["a", "b"]))]
        assert got == [*range(1, len(got) - 1), "a", "b"]


async def test_break_closes_the_async_source(way):
    """Not at some later garbage collection: with the iteration."""
    closed = []

    async def source():
        try:
            for number in range(1000):
                yield number
        finally:
            closed.append(True)

    async with way.open(functions.echo, buffer=2) as stream:
        async with contextlib.aclosing(stream.feed(source())) as feeding:
            async for _ in feeding:
                break
        assert closed


async def test_feed_after_end_says_closed(way, kind):
    async with way.open(functions.echo) as stream:
        await stream.end()
        with pytest.raises(StreamClosed, match=r"end\(\)"):
            async for _ in stream.feed(source_of(kind, [1])):
                pass


async def test_slow_async_source_does_not_hold_results_back(way):
    gate = asyncio.Event()

    async def source():
        yield 1
        await gate.wait()
        yield 2

    async with way.open(functions.echo) as stream:
        feeding = aiter(stream.feed(source()))
        assert await asyncio.wait_for(anext(feeding), HANG) == 1
        waiting = asyncio.create_task(wait_next(feeding))
        assert await blocked(waiting, 5)
        gate.set()
        assert await asyncio.wait_for(waiting, HANG) == 2
        with pytest.raises(StopAsyncIteration):
            await anext(feeding)


async def wait_next(iterator):
    return await anext(iterator)


async def test_source_is_taken_as_there_is_room(way, kind):
    taken = 0

    def noted():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    async def noted_async():
        for number in noted():
            yield number

    source = noted_async() if kind.startswith("async") else noted()
    async with way.open(functions.echo, buffer=4) as stream:
        feeding = aiter(stream.feed(source))
        assert await anext(feeding) == 0
        for _ in range(20):
            await asyncio.sleep(0.002)
        # 4 events, 4 results, what the function and the two sides have in hand, one burst drained
        assert taken <= 20
        if hasattr(feeding, "aclose"):
            await feeding.aclose()


@pytest.mark.parametrize("wrong", [5, None])
async def test_feed_of_what_is_no_iterable(way, wrong):
    async with way.open(functions.echo) as stream:
        with pytest.raises(TypeError):
            async for _ in stream.feed(wrong):
                pass
        await stream.send(1)
        assert await stream.recv() == 1


async def test_feed_of_another_streams_results(way):
    """Streams compose by hand."""
    summing, echo = way.fn(functions.running_sum), way.fn(functions.echo)
    async with summing.open() as one, echo.open() as other:
        got = [r async for r in other.feed(one.feed(range(100)))]
    assert got == [sum(range(n + 1)) for n in range(100)]


async def test_results_after_feed_end(way, kind):
    """What a slow function yields for the last event is not dropped 50 ms after the source ends."""

    @stream_fn
    async def late(events):
        async for event in events:
            if event == 2:
                await asyncio.sleep(0.3)
            yield event

    async with way.open(late) as stream:
        assert [r async for r in stream.feed(source_of(kind, [1, 2]))] == [1, 2]


async def test_feed_yields_to_other_tasks(way):
    """A feed that never has to wait still lets the event loop in."""
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with way.open(functions.echo) as stream:
        async for _ in stream.feed(range(100_000)):
            pass
    task.cancel()
    assert turns > 10


@pytest.mark.parametrize("how", ["feed", "send_batch"])
async def test_an_event_does_not_wait_for_what_its_source_makes_next(tmp_path, how):
    """The source goes on once the function, in another process, has had the event before."""
    path = str(tmp_path / "marks")

    @stream_fn(mode="process")
    async def marks(events):
        async for event in events:
            functions.mark(path)
            yield event

    def waits_for_the_function():
        for number in range(3):
            until_sync(lambda: len(functions.marks(path)) == number)
            time.sleep(0.001)  # as what takes long to make
            yield number

    async with marks.open() as stream:
        if how == "feed":
            assert [result async for result in stream.feed(waits_for_the_function())] == [0, 1, 2]
        else:
            await stream.send_batch(waits_for_the_function())
            assert [await stream.recv() for _ in range(3)] == [0, 1, 2]
