"""`full`: what sending does when `buffer` events are queued."""

import asyncio

import pytest

import functions
from functions import mark, marks
from helpers import drain, until
from velo import stream_fn
from velo.errors import BufferFull, EventTooLarge, StreamClosed


@pytest.fixture
def gate(tmp_path):
    return str(tmp_path / "gate")


def gated(gate, **settings):
    """Echoes, but reads nothing before the gate is opened."""

    @stream_fn(**settings)
    async def read_later(events):
        while not marks(gate):
            await asyncio.sleep(0.001)
        async for event in events:
            yield event

    return read_later


def holding(gate, **settings):
    """Echoes, but holds the first event until the gate is opened."""

    @stream_fn(**settings)
    async def hold_first(events):
        async for event in events:
            yield event
            while not marks(gate):
                await asyncio.sleep(0.001)

    return hold_first


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("count", [3, 4, 5, 7, 8, 9, 40])
async def test_the_newest_survive(mode, gate, batch, count):
    async with gated(gate, mode=mode, buffer=4, full="drop_oldest").open() as stream:
        if batch:
            await stream.send_batch(range(count))
        else:
            for event in range(count):
                await stream.send(event)
        mark(gate)
        await stream.end()
        assert await drain(stream) == list(range(count))[-4:]
        metrics = stream.metrics
        assert (metrics.events, metrics.results) == (count, min(count, 4))
        assert (metrics.dropped, metrics.queued) == (max(count - 4, 0), 0)


async def test_what_is_worked_on_is_not_dropped(mode, gate):
    async with holding(gate, mode=mode, buffer=2, full="drop_oldest").open() as stream:
        await stream.send("held")
        assert await stream.recv() == "held"
        await stream.send_batch(range(10))
        mark(gate)
        await stream.end()
        assert await drain(stream) == [8, 9]
        assert stream.metrics.dropped == 8


async def test_what_was_kept_arrives_without_another_call(mode, gate):
    """Nobody waits on the stream while room appears."""
    async with gated(gate, mode=mode, buffer=4, full="drop_oldest").open() as stream:
        await stream.send_batch(range(20))
        mark(gate)
        await until(lambda: stream.metrics.queued == 0)
        assert await stream.recv_batch() == [16, 17, 18, 19]
        await stream.send("more")
        assert await stream.recv() == "more"


async def test_dropping_goes_on_as_the_function_works(way):
    """Some arrive, in order, the last one among them, and all are accounted for."""
    echo = way.fn(functions.echo, buffer=4, full="drop_oldest")
    async with echo.open() as stream:
        for event in range(5_000):
            await stream.send(event)
            if event % 100 == 0:
                await asyncio.sleep(0)
        taking = asyncio.create_task(drain(stream))
        await stream.end()
        results = await taking
        assert results == sorted(set(results))
        assert results[-1] == 4_999
        metrics = stream.metrics
        assert metrics.events == 5_000 == metrics.dropped + metrics.results


async def test_what_cannot_travel_raises_at_send_although_it_would_be_dropped(gate):
    async with gated(gate, mode="process", buffer=2, full="drop_oldest").open() as stream:
        await stream.send_batch(range(5))
        with pytest.raises(TypeError):
            await stream.send({"lock": __import__("threading").Lock()})
        mark(gate)
        await stream.end()
        assert await drain(stream) == [3, 4]


async def test_a_kept_event_that_is_too_large_raises_at_send(gate):
    fn = gated(gate, mode="process", buffer=2, full="drop_oldest", max_bytes=1 << 16)
    async with fn.open() as stream:
        await stream.send_batch(range(5))
        with pytest.raises(EventTooLarge, match="max_bytes"):
            await stream.send(b"x" * (1 << 17))
        mark(gate)
        await stream.end()
        assert await drain(stream) == [3, 4]


async def test_cancelling_a_stream_that_has_dropped(mode, gate):
    fn = gated(gate, mode=mode, buffer=2, full="drop_oldest")
    stream = await fn.open()
    await stream.send_batch(range(10))
    with pytest.raises(RuntimeError, match="enough"):
        async with stream:
            raise RuntimeError("enough")
    with pytest.raises(StreamClosed):
        await stream.send(1)


async def test_feeding_always_waits(way):
    for full in ("drop_oldest", "error"):
        echo = way.fn(functions.echo, buffer=4, full=full)
        assert await echo.run(range(1_000)) == list(range(1_000))
        keyed = [result async for _, result in echo.keyed(range(1_000), key=lambda event: 0)]
        assert keyed == list(range(1_000))


async def test_feeding_after_dropping(mode, gate):
    """What is kept goes before what is fed."""
    async with gated(gate, mode=mode, buffer=4, full="drop_oldest").open() as stream:
        await stream.send_batch(range(10))
        mark(gate)
        results = [result async for result in stream.feed(range(10, 100))]
        assert results == list(range(6, 100))


async def test_an_error_instead_of_waiting(mode, gate):
    async with gated(gate, mode=mode, buffer=2, full="error").open() as stream:
        await stream.send(0)
        await stream.send(1)
        with pytest.raises(BufferFull, match=rf"`{stream.name}`.*`buffer`") as caught:
            await stream.send(2)
        assert (caught.value.stream, caught.value.sent, caught.value.event) == (stream.name, 0, 2)
        mark(gate)
        assert await stream.recv() == 0
        assert await stream.recv() == 1
        await stream.send(3)
        assert await stream.recv() == 3
        assert (stream.metrics.events, stream.metrics.dropped) == (3, 0)


async def test_a_batch_says_how_much_of_it_went_in(mode, gate):
    async with gated(gate, mode=mode, buffer=3, full="error").open() as stream:
        events = iter(range(10))
        with pytest.raises(BufferFull) as caught:
            await stream.send_batch(events)
        assert (caught.value.sent, caught.value.event, next(events)) == (3, 3, 4)
        mark(gate)
        await stream.end()
        assert await drain(stream) == [0, 1, 2]


async def test_a_stream_that_has_ended_says_that_instead(way):
    for full in ("drop_oldest", "error"):
        async with way.open(functions.first_two, buffer=2, full=full) as stream:
            await stream.send(1)
            await stream.send(2)
            assert len(await drain(stream)) == 2
            with pytest.raises(StreamClosed):
                for event in range(10):
                    await stream.send(event)


def test_a_wrong_policy():
    with pytest.raises(ValueError, match='`full` must be "wait" or "drop_oldest" or "error"'):
        functions.echo.options(full="newest")
