"""`send_batch` and `recv_batch`."""

import asyncio

import pytest

import functions
from helpers import HANG, blocked, cancel, drain
from velo.errors import StreamClosed


async def test_batches_keep_order(way):
    async with way.open(functions.echo) as stream:
        await stream.send_batch(range(100))
        got = []
        while len(got) < 100:
            batch = await stream.recv_batch()
            assert type(batch) is list
            assert batch
            got.extend(batch)
        assert got == list(range(100))


@pytest.mark.parametrize("most", [1, 3, 1000])
async def test_recv_batch_gives_at_most_max(way, most):
    async with way.open(functions.repeat) as stream:
        await stream.send(50)
        await stream.end()
        sizes = []
        with pytest.raises(StreamClosed):
            while True:
                sizes.append(len(await stream.recv_batch(most)))
        assert sum(sizes) == 50
        assert min(sizes) >= 1
        assert max(sizes) <= most


async def test_recv_batch_does_not_wait_for_more(way):
    async with way.open(functions.echo) as stream:
        await stream.send(1)
        assert await asyncio.wait_for(stream.recv_batch(10), HANG) == [1]


@pytest.mark.parametrize("most", [0, -1])
async def test_recv_batch_of_nothing_is_refused(way, most):
    async with way.open(functions.echo) as stream:
        with pytest.raises((ValueError, OverflowError), match="max|negative"):
            await stream.recv_batch(most)


async def test_batch_larger_than_the_buffer_waits(way):
    async with way.open(functions.echo, buffer=4) as stream:
        sending = asyncio.create_task(send_all(stream, range(100)))
        got = []
        while len(got) < 100:
            got.extend(await stream.recv_batch())
        await sending
        assert got == list(range(100))


async def send_all(stream, events):
    await stream.send_batch(events)


@pytest.mark.parametrize("empty", [[], (), iter([]), {}, ""])
async def test_empty_batch(way, empty):
    async with way.open(functions.echo) as stream:
        await stream.send_batch(empty)
        await stream.send(1)
        assert await stream.recv() == 1


async def test_batch_of_a_generator_is_taken_as_there_is_room(way):
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    never = way.fn(functions.never_reads, buffer=5, close_timeout=0.05)
    async with never.open() as stream:
        sending = asyncio.create_task(send_all(stream, source()))
        assert await blocked(sending)
        assert 5 <= len(taken) <= 6
        await cancel(sending)


async def test_failing_source_of_a_batch(way):
    """What came before was sent, and the stream goes on."""

    def source():
        yield 1
        yield 2
        raise LookupError("source")

    async with way.open(functions.echo) as stream:
        with pytest.raises(LookupError, match="source"):
            await stream.send_batch(source())
        await stream.send(3)
        await stream.end()
        assert await drain(stream) == [1, 2, 3]


@pytest.mark.parametrize("wrong", [5, None])
async def test_batch_of_what_is_no_iterable(way, wrong):
    async with way.open(functions.echo) as stream:
        with pytest.raises(TypeError):
            await stream.send_batch(wrong)
        await stream.send(1)
        assert await stream.recv() == 1


async def test_an_operation_is_awaited_once(way):
    async with way.open(functions.echo) as stream:
        sending = stream.send(1)
        await sending
        with pytest.raises(RuntimeError, match="twice"):
            await sending
        await stream.end()
        assert await drain(stream) == [1]


async def test_an_operation_that_is_not_awaited_does_nothing(way):
    async with way.open(functions.echo) as stream:
        stream.send(1).close()
        await stream.send(2)
        await stream.end()
        assert await drain(stream) == [2]
