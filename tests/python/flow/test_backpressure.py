"""Backpressure: `buffer` is exact in both modes, and nothing grows beyond it."""

import asyncio
import os

import pytest

import functions
from helpers import HANG, blocked, cancel, drain, until
from velo import stream_fn


async def fill(stream, most=1000):
    """Sends until a send waits; how many were accepted."""
    for number in range(most):
        sending = asyncio.create_task(send_one(stream, number))
        if await blocked(sending, 25):
            await cancel(sending)
            return number
        await sending
    raise AssertionError(f"{most} sends and none waits")


async def send_one(stream, event):
    await stream.send(event)


@pytest.mark.parametrize("buffer", [1, 2, 7])
async def test_function_that_never_reads(way, buffer):
    never = way.fn(functions.never_reads, buffer=buffer, close_timeout=0.05)
    async with never.open() as stream:
        assert await fill(stream) == buffer
        assert stream.metrics.queued == buffer


@pytest.mark.parametrize("buffer", [1, 2, 7])
async def test_function_that_holds_one_event(way, buffer, tmp_path):
    """An event counts until the function has asked for the next one."""
    path = str(tmp_path / "gate")
    async with way.open(functions.gate, buffer=buffer) as stream:
        await stream.send(path)
        await until(lambda: stream.metrics.queued == 0)
        assert await fill(stream) == buffer
        functions.mark(path)
        await stream.end()
        assert await drain(stream) == list(range(buffer))


@pytest.mark.parametrize("buffer", [1, 2, 7])
async def test_consumer_that_never_receives(way, buffer):
    """`buffer` results wait, one more is in the function's hands, and its event still counts."""
    async with way.open(functions.echo, buffer=buffer) as stream:
        # Beyond `buffer`, each send waits until the function has taken an event.
        for number in range(2 * buffer):
            await asyncio.wait_for(stream.send(number), HANG)
        sending = asyncio.create_task(send_one(stream, "never"))
        assert await blocked(sending, 25)
        await cancel(sending)
        got = [await stream.recv() for _ in range(2 * buffer)]
        assert got == list(range(2 * buffer))


async def test_results_wait_for_a_slow_consumer(way, tmp_path):
    path = str(tmp_path / "made")

    @stream_fn(buffer=5)
    async def makes(events):
        for number in range(1000):
            functions.mark(path)
            yield number

    async with way.open(makes) as stream:
        await until(lambda: len(functions.marks(path)) >= 6)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert len(functions.marks(path)) == 6  # five wait and one is at its `yield`
        assert [await stream.recv() for _ in range(3)] == [0, 1, 2]
        await until(lambda: len(functions.marks(path)) == 9)


async def test_waiting_send_goes_on_when_there_is_room(way, tmp_path):
    path = str(tmp_path / "gate")
    async with way.open(functions.gate, buffer=3) as stream:
        await stream.send(path)
        sending = asyncio.create_task(stream.send_batch(range(10)))
        assert await blocked(sending)
        functions.mark(path)
        got = [await asyncio.wait_for(stream.recv(), HANG) for _ in range(10)]
        await asyncio.wait_for(sending, HANG)
        assert got == list(range(10))


async def test_end_waits_for_no_room(way):
    """The end of the input needs no place among the events."""
    async with way.open(functions.never_reads, buffer=2, close_timeout=0.05) as s:
        await s.send_batch([1, 2])
        await asyncio.wait_for(s.end(), HANG)


async def test_memory_of_a_slow_function_is_bounded(way):
    """100 MB offered, a few at a time accepted."""
    import psutil

    never = way.fn(functions.never_reads, buffer=4, close_timeout=0.05)
    async with never.open() as stream:
        assert await stream.recv() == "ready"
        before = psutil.Process().memory_info().rss
        sending = asyncio.create_task(send_many(stream, 100))
        assert await blocked(sending)
        grown = psutil.Process().memory_info().rss - before
        assert grown < 30_000_000
        await cancel(sending)


async def send_many(stream, count):
    for _ in range(count):
        await stream.send(os.urandom(1_000_000))


async def test_bytes_bound_the_queue_before_events_do():
    """In process mode a ring has a ceiling in bytes too."""
    never = functions.never_reads.options(
        mode="process", buffer=100_000, max_bytes=1_000_000, close_timeout=0.05
    )
    async with never.open() as stream:
        sending = asyncio.create_task(send_sized(stream, 10_000, 1000))
        assert await blocked(sending)
        # 1 MiB, and what is left in the smaller ring that it grew out of
        assert 10 <= stream.metrics.queued <= 210
        await cancel(sending)


async def send_sized(stream, size, count):
    for _ in range(count):
        await stream.send(bytes(size))


async def test_pipeline_of_slow_parts_is_bounded(way):
    taken = 0

    async def source():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    one = way.fn(functions.echo, buffer=2)
    chain = one | way.fn(functions.echo, buffer=2)
    async with chain.open() as stream:
        feeding = stream.feed(source())
        assert await anext(feeding) == 1
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert taken < 20
        await feeding.aclose()
