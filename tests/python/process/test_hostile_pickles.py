"""Harm at every stage of an event's way: it is told to its stream, and nobody waits for ever.

The stages are those of CPython's tests of broken executors: while something is pickled, unpickled
or executed, it raises, exits or crashes.
"""

import asyncio
import os

import pytest

import functions
from helpers import HANG
from hostile_pickles import HARMS, AsItArrives, AsItLeaves, Harm, do
from recovering import fresh_pool  # noqa: F401
from velo import stream_fn
from velo.errors import EventTooLarge, WorkerDied

MORTAL = [what for what in HARMS if what != "raise"]

echo = functions.echo.options(mode="process", workers=1)


@stream_fn(mode="process", workers=1)
async def harmed(events):
    """Does what it is told to do, in the middle of its work."""
    async for what in events:
        do(what)
        yield what


@stream_fn(mode="process", workers=1)
async def careful(events):
    """Goes on with its next result when one cannot leave."""
    async for event in events:
        try:
            yield event
        except Harm as error:
            yield f"{error}, at its `yield`"


async def first_result(fn, event):
    """Bounded: nothing of this may hang."""
    async with asyncio.timeout(HANG), fn.open() as stream:
        await stream.send(event)
        return await stream.recv()


async def works_again():
    async with asyncio.timeout(HANG):
        assert await echo.run([1, 2]) == [1, 2]


async def test_raises_as_it_is_unpickled_in_the_worker():
    with pytest.raises(Harm, match="on the way"):
        await first_result(echo, AsItArrives("raise"))
    await works_again()


@pytest.mark.parametrize("what", MORTAL)
async def test_ends_the_worker_as_it_is_unpickled(what):
    with pytest.raises(WorkerDied):
        await first_result(echo, AsItArrives(what))
    await works_again()


async def test_raises_in_the_middle_of_its_work():
    with pytest.raises(Harm, match="on the way"):
        await first_result(harmed, "raise")
    await works_again()


@pytest.mark.parametrize("what", MORTAL)
async def test_ends_the_worker_in_the_middle_of_its_work(what):
    with pytest.raises(WorkerDied):
        await first_result(harmed, what)
    await works_again()


async def test_raises_as_the_result_is_pickled():
    """At the `yield` that made it, where the function may go on from it."""
    event = AsItLeaves("raise", os.getpid())
    assert await first_result(careful, event) == "on the way, at its `yield`"
    with pytest.raises(Harm):
        await first_result(echo, event)
    await works_again()


@pytest.mark.parametrize("what", MORTAL)
async def test_ends_the_worker_as_the_result_is_pickled(what):
    with pytest.raises(WorkerDied):
        await first_result(echo, AsItLeaves(what, os.getpid()))
    await works_again()


async def test_raises_as_the_event_is_pickled_here():
    """Nothing is sent, and the stream lives on."""
    async with echo.open() as stream:
        with pytest.raises(Harm):
            await stream.send(AsItLeaves("raise", home=0))
        await stream.send(1)
        assert await stream.recv() == 1


@stream_fn(mode="process", workers=1)
async def dangerous(events):
    async for event in events:
        yield AsItArrives(event) if event in HARMS else event


async def test_raises_as_the_result_is_unpickled_here():
    """The result is lost to the one who asked for it, and the next one comes."""
    async with dangerous.open() as stream:
        await stream.send_batch(["raise", "fine"])
        with pytest.raises(Harm):
            await stream.recv()
        assert await stream.recv() == "fine"


async def test_a_function_whose_unpickling_harms_the_worker():
    """It travels by value, and what it holds is unpickled with it."""
    burden = AsItArrives("exit")

    @stream_fn(mode="process", workers=1)
    async def burdened(events):
        async for event in events:
            yield event, burden

    with pytest.raises(WorkerDied):
        await first_result(burdened, 1)
    await works_again()


@pytest.mark.parametrize("size", [4096, 1 << 20])
async def test_what_is_too_large_harms_nobody(size):
    """At the limit, below it and above it, in both directions."""
    fn = echo.options(max_bytes=size)
    async with asyncio.timeout(HANG), fn.open() as stream:
        for event in (bytes(size // 4), bytes(size), bytes(size // 4), bytes(2 * size)):
            if len(event) < size // 2:
                await stream.send(event)
                assert await stream.recv() == event
            else:
                with pytest.raises(EventTooLarge):
                    await stream.send(event)


async def test_more_wake_ups_than_a_worker_takes_while_it_stands_still():
    """Thousands of streams open, are used and closed while nobody looks."""
    import signal

    (pid,) = await functions.pids.options(mode="process", workers=1).run([0])
    os.kill(pid, signal.SIGSTOP)
    try:
        streams = [await echo.open() for _ in range(3000)]
        for number, stream in enumerate(streams):
            await stream.send(number)
    finally:
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(HANG):
        for number, stream in enumerate(streams):
            assert await stream.recv() == number
        await asyncio.gather(*(stream.aclose() for stream in streams))
