"""Arrays on loan: filled in place, sent without a copy, safe to keep on either side."""

import asyncio
import dataclasses
import gc
import os
import signal

import numpy as np
import pytest

import functions
from helpers import blocked, cancel, one_is_refused, until
from velo import stream_fn
from velo.errors import EventTooLarge, StreamBusy, StreamClosed, WorkerDied

SHAPE = (300, 400, 3)
MB = 1024 * 1024

echo = functions.echo.options(mode="process")


@dataclasses.dataclass
class Picture:
    name: str
    pixels: np.ndarray


@stream_fn(mode="process")
async def keeps(events):
    """Keeps every event, and yields how many it has."""
    kept = []
    async for event in events:
        kept.append(event)
        yield len(kept)


@stream_fn(mode="process")
async def look(events):
    """Yields what an array begins with, and whether it may be written to."""
    async for event in events:
        yield int(event[0]), bool(event.flags.writeable)


@stream_fn(mode="process")
async def later(events):
    """Reads an event when it has the next one."""
    last = None
    async for event in events:
        if last is not None:
            yield int(last[0])
        last = event


async def lend(stream, number, shape=SHAPE, dtype=np.uint8):
    array = await stream.loan(shape, dtype)
    array[...] = number
    return array


def is_lent(array):
    """Whether its memory is shared with a worker."""
    while isinstance(array, np.ndarray):
        array = array.base
    return type(array).__name__ == "LoanMemory"


async def counted(stream, event):
    """What sending this event adds to the bytes that went in."""
    before = stream.metrics.bytes_in
    await stream.send(event)
    return stream.metrics.bytes_in - before


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">i4", "M8[us]", "U7", [("a", "i4"), ("b", "f8")]])
async def test_an_array_as_asked_for(mode, dtype):
    async with functions.echo.options(mode=mode).open() as stream:
        for shape in [20_000, (200, 100), [4, 5, 1000], (), 0, (7, 0, 3), 3]:
            like = np.zeros(shape, dtype)
            array = await stream.loan(shape, dtype)
            assert (array.shape, array.dtype) == (like.shape, like.dtype)
            assert array.flags.writeable
            assert is_lent(array) == (mode == "process" and array.nbytes >= 16 * 1024)
            array[...] = like
            await stream.send(array)
            result = await stream.recv()
            assert (result.dtype, result.shape) == (like.dtype, like.shape)
            assert (result == like).all()


async def test_many_in_flight(mode):
    fn = functions.echo.options(mode=mode, buffer=4)

    async def frames():
        for number in range(50):
            yield await lend(stream, number)

    async with fn.open() as stream:
        results = [result async for result in stream.feed(frames())]
    assert len(results) == 50
    assert all((result == number).all() for number, result in enumerate(results))


async def test_inside_other_events(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        one, two = await lend(stream, 1), await lend(stream, 2)
        for event in [
            (one, "one"),
            [one, {"two": two}],
            {"one": one, "plain": np.arange(10_000)},
            Picture("one", one),
            [one, one],
            (one[:100], one[100:], two),
        ]:
            await stream.send(event)
            result = await stream.recv()
            np.testing.assert_equal(_plain(result), _plain(event))
    assert not one.flags.writeable or mode == "inline"


def _plain(event):
    return dataclasses.asdict(event) if isinstance(event, Picture) else event


async def test_batches(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        await stream.send_batch([await lend(stream, number) for number in range(10)])
        await stream.end()
        results = [result async for result in stream]
    assert [int(result[0, 0, 0]) for result in results] == list(range(10))


async def test_the_function_has_a_read_only_view_of_the_same_memory():
    @stream_fn(mode="process")
    async def watches(events):
        async for event in events:
            if event is not None:
                array = event
            yield array.flags.writeable, int(array[0])

    async with watches.open() as stream:
        array = await lend(stream, 1, 20_000)
        view = array[:]
        await stream.send(array)
        assert await stream.recv() == (False, 1)
        view[0] = 2  # a view that was there before can still write, and it shows
        await stream.send(None)
        assert await stream.recv() == (False, 2)


async def test_read_only_once_sent():
    async with echo.open() as stream:
        array = await lend(stream, 1)
        await stream.send(array[:200])
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        again = array.copy()
        again[0] = 2


async def test_a_cancelled_send_leaves_it_writable():
    @stream_fn(mode="process", buffer=1)
    async def waits(events):
        async for event in events:
            yield event

    async with waits.open() as stream:
        for number in range(10):
            array = await lend(stream, number)
            task = asyncio.ensure_future(asyncio.wait_for(stream.send(array), None))
            if await blocked(task, 3):
                break
        await cancel(task)
        array[...] = 77
        got = [int((await stream.recv())[0, 0, 0]) for _ in range(number)]
        assert got == list(range(number))
        await stream.send(array)
        assert (await stream.recv() == 77).all()


async def test_sent_more_than_once():
    async with keeps.open() as stream:
        array = await lend(stream, 5)
        for number in range(1, 4):
            await stream.send(array)
            assert await stream.recv() == number
    assert (array == 5).all()


async def test_never_sent():
    """What is dropped is lent again: no more memory is taken than is held at a time."""
    async with echo.options(max_bytes=4 * MB).open() as stream:
        for number in range(100):
            array = await lend(stream, number)
        await stream.send(array)
        assert (await stream.recv() == 99).all()


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[::2],
        lambda array: array[:, 10:20],
        lambda array: array[::-1],
        lambda array: array.transpose(1, 0, 2),
        lambda array: array[50:60],
        lambda array: array.reshape(-1),
        lambda array: array.T,
    ],
)
async def test_parts(part):
    async with echo.open() as stream:
        array = await stream.loan(SHAPE, np.uint16)
        array[...] = np.arange(array.size, dtype=np.uint16).reshape(SHAPE)
        await stream.send(part(array))
        assert (await stream.recv() == part(array)).all()


async def test_on_another_stream_it_is_a_copy():
    async with echo.open() as one, echo.open() as two:
        array = await lend(one, 3)
        await two.send(array)
        array[...] = 4
        assert (await two.recv() == 3).all()
        await one.send(array)
        assert (await one.recv() == 4).all()


async def test_held_longer_than_the_stream():
    async with echo.open() as stream:
        unsent, sent = await lend(stream, 1), await lend(stream, 2)
        await stream.send(sent)
        result = await stream.recv()
    gc.collect()
    async with echo.open() as stream:
        for number in range(10, 20):
            await stream.send(await lend(stream, number))
            await stream.recv()
    unsent += 1
    assert (unsent == 2).all()
    assert (sent == 2).all()
    assert (result == 2).all()


async def test_held_longer_than_the_worker():
    @stream_fn(mode="process")
    async def pid(events):
        async for event in events:
            yield os.getpid(), event.shape

    array = None
    with pytest.raises(WorkerDied):
        async with pid.open() as stream:
            array = await lend(stream, 1)
            await stream.send(array)
            worker, shape = await stream.recv()
            assert shape == SHAPE
            unsent = await lend(stream, 2)
            os.kill(worker, signal.SIGKILL)
            while True:
                await stream.send(await lend(stream, 3))
                await stream.recv()
    unsent += 1
    assert (unsent == 3).all()
    assert (array == 1).all()


async def test_after_the_end(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        await stream.end()
        with pytest.raises(StreamClosed):
            await stream.loan(SHAPE, np.uint8)


async def test_max_bytes_is_waited_for():
    async with later.options(max_bytes=4 * MB).open() as stream:
        held = [await lend(stream, number, MB) for number in range(4)]
        waiting = asyncio.ensure_future(asyncio.wait_for(stream.loan(MB, np.uint8), None))
        assert await blocked(waiting)
        another = asyncio.wait_for(stream.loan(MB, np.uint8), None)
        error, waiting = await one_is_refused(waiting, another)
        assert type(error) is StreamBusy
        assert "loan" in str(error)
        await stream.send_batch(held)  # the function keeps the last, and we keep all of them
        assert [await stream.recv() for _ in range(3)] == [0, 1, 2]
        assert await blocked(waiting)
        del held
        array = await waiting
        array[...] = 9
        await stream.send(array)
        assert await stream.recv() == 3


async def test_waiting_ends_when_an_unsent_one_is_dropped():
    async with echo.options(max_bytes=4 * MB).open() as stream:
        held = [await lend(stream, number, MB) for number in range(4)]
        waiting = asyncio.ensure_future(asyncio.wait_for(stream.loan(MB, np.uint8), None))
        assert await blocked(waiting)
        held.pop()
        await waiting


async def test_waiting_ends_with_the_stream():
    @stream_fn(mode="process", max_bytes=4 * MB)
    async def one(events):
        async for _ in events:
            return
        yield

    async with one.open() as stream:
        _held = [await lend(stream, number, MB) for number in range(4)]
        waiting = asyncio.ensure_future(asyncio.wait_for(stream.loan(MB, np.uint8), None))
        assert await blocked(waiting)
        await stream.send(1)
        with pytest.raises(StreamClosed):
            await waiting


async def test_a_cancelled_loan_takes_nothing():
    async with echo.options(max_bytes=4 * MB).open() as stream:
        held = [await lend(stream, number, MB) for number in range(4)]
        for _ in range(5):
            waiting = asyncio.ensure_future(asyncio.wait_for(stream.loan(MB, np.uint8), None))
            assert await blocked(waiting, 2)
            await cancel(waiting)
        del held
        _held = [await lend(stream, number, MB) for number in range(4)]


async def test_a_function_that_hoards_gets_copies():
    """More is kept than may be on loan: the stream goes on, and all of it is right."""

    @stream_fn(mode="process", max_bytes=4 * MB, buffer=4)
    async def hoards(events):
        kept = []
        async for event in events:
            kept.append(event)
            yield sum(int(array.base is not None) for array in kept)
        yield all((array == number).all() for number, array in enumerate(kept))

    async with hoards.open() as stream:
        for number in range(40):
            await stream.send(await lend(stream, number))
            await stream.recv()
        await stream.end()
        assert await stream.recv() is True


async def test_memory_is_bounded():
    """A busy stream lends the same few blocks again and again."""
    addresses = set()
    async with look.options(buffer=2).open() as stream:
        for number in range(200):
            array = await lend(stream, number, MB)
            addresses.add(array.ctypes.data)
            await stream.send(array)
            del array
            assert await stream.recv() == (number % 256, False)
    assert len(addresses) <= 4


async def test_streams_that_are_cancelled_lose_no_memory():
    """Loans in frames that nobody read come back with the slot."""

    @stream_fn(mode="process", max_bytes=64 * MB)
    async def stuck(events):
        async for _ in events:
            await asyncio.sleep(3600)
            yield

    before = _shared()
    for _ in range(30):
        with pytest.raises(ZeroDivisionError):
            async with stuck.open() as stream:
                await stream.send_batch([await lend(stream, 1, 4 * MB) for _ in range(4)])
                raise ZeroDivisionError
    async with stuck.open():
        await until(lambda: _shared() - before < 200 * MB, describe=_shared)


def _shared():
    """Bytes of shared memory of this process that exist."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssShmem"].split()[0]) * 1024


async def test_drop_oldest_drops_loans_too():
    gate = stream_fn(mode="process", full="drop_oldest", buffer=3, max_bytes=32 * MB)(_slowly)
    async with gate.open() as stream:
        for number in range(60):
            array = await lend(stream, number, MB)
            await stream.send(array)
            assert not array.flags.writeable
        await stream.end()
        got = [result async for result in stream]
    assert got[-1] == 59
    assert got == sorted(set(got))
    assert len(got) < 60


async def _slowly(events):
    async for event in events:
        await asyncio.sleep(0.02)
        yield int(event[0])


async def test_what_cannot_be_lent(mode):
    async with functions.echo.options(mode=mode, max_bytes=4 * MB).open() as stream:
        for dtype in [object, [("a", "O")]]:
            with pytest.raises(TypeError, match="cannot lend an array of dtype"):
                await stream.loan(10_000, dtype)
        with pytest.raises(TypeError):
            await stream.loan("many", np.uint8)
        with pytest.raises(ValueError, match="negative"):
            await stream.loan((3, -1), np.uint8)
        with pytest.raises(ValueError, match="memory"):
            await stream.loan((2**40, 2**40), np.uint8)


async def test_too_large_is_said_as_for_events():
    async with echo.options(max_bytes=4 * MB).open() as stream:
        with pytest.raises(EventTooLarge, match=r"half of `max_bytes`"):
            await stream.loan(3 * MB, np.uint8)
        await stream.send(await lend(stream, 1))


async def test_a_private_copy_of_what_was_lent():
    @stream_fn(mode="process")
    async def passes(events):
        async for event in events:
            yield event

    async with passes.open() as stream:
        await stream.send(await lend(stream, 6))
        result = await stream.recv(copy=True)
        result[0] = 7


async def test_bytes_count_what_is_lent():
    async with echo.open() as stream:
        array = await lend(stream, 1)
        assert array.nbytes <= await counted(stream, array) < array.nbytes + 200
        await stream.recv()
