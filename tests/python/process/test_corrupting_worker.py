"""A worker that writes over its own link: its streams fail or go on, and nothing else suffers."""

import asyncio
import contextlib
import random
import time

import pytest

import corrupting_worker
from helpers import HANG
from recovering import fresh_pool  # noqa: F401
from velo._process import clients
from velo.errors import RingCorrupted, StreamClosed, VeloError, WorkerDied

citizen = corrupting_worker.citizen.options(workers=2, buffer=16)

# What is aimed at here may make other values, or exceptions, of what a function gets and yields:
# it is what the function's own process wrote.
GARBLES = {"data", "lengths", "moves", "heap", "anything", "indices", "counts"}


async def pid_of(stream):
    await stream.send("pid")
    return await stream.recv()


async def talk(stream, events):
    """Sends and receives one by one and in bulk: the results, and how it ended."""
    results = []
    try:
        for start in range(0, len(events), 20):
            chunk = events[start : start + 20]
            if start % 40:
                async for result in stream.feed(chunk):
                    results.append(result)
            else:
                for event in chunk:
                    await stream.send(event)
                    results.append(await stream.recv())
    except Exception as error:
        return results, error
    return results, None


async def scene(aim, seed):
    """Two workers with two streams each; one of the four writes over its link as they talk."""
    rng = random.Random(f"scene {aim} {seed}")
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(4):
            streams.append(await stack.enter_async_context(citizen.open()))
        pids = [await asyncio.wait_for(pid_of(stream), HANG) for stream in streams]
        assert len(set(pids)) == 2
        numbers = list(range(200))
        told = list(numbers)
        for _ in range(3):
            told.insert(rng.randrange(len(told)), (aim, rng.randrange(1 << 30)))
        talks = [talk(stream, told if stream is streams[0] else numbers) for stream in streams]
        outcomes = await asyncio.wait_for(asyncio.gather(*talks), HANG)
        for pid, (results, error) in zip(pids, outcomes, strict=True):
            if pid != pids[0]:
                assert error is None, "the other worker's streams do not notice"
                assert results == [2 * number for number in numbers]
            elif aim not in GARBLES:
                assert error is None or isinstance(error, (RingCorrupted, WorkerDied, StreamClosed))
                right = iter([2 * number for number in numbers])
                assert all(any(result == r for r in right) for result in results if result != aim)
        # Leaving the streams is bounded as well.
        await asyncio.wait_for(leave(stack.pop_all()), HANG)
    return [error for _, error in outcomes if error is not None]


async def leave(stack):
    """Closes the streams; those that failed may say so once more."""
    with contextlib.suppress(VeloError):
        await stack.aclose()


async def goes_on():
    """New streams work, soon, and on as many workers as before."""
    deadline = time.monotonic() + HANG
    good = 0
    while good < 4:
        # A function whose stream has failed may still be writing, for a moment.
        try:
            await asyncio.wait_for(right(), HANG)
        except (AssertionError, RingCorrupted, WorkerDied):
            assert time.monotonic() < deadline
            good = 0
        else:
            good += 1


async def right():
    """Two streams on two workers, and a run."""
    assert await citizen.run(range(50)) == [2 * number for number in range(50)]
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(citizen.open()) for _ in range(2)]
        assert len({await pid_of(stream) for stream in streams}) == 2


@pytest.mark.parametrize("aim", ["info", "residents"])
async def test_recovery_does_not_carry_it_to_other_workers(aim):
    """A function that writes over what describes its link would do it to each that it came to."""
    recovering = citizen.options(recover="replay")
    async with contextlib.AsyncExitStack() as stack:
        wild, other = [await stack.enter_async_context(recovering.open()) for _ in range(2)]
        pids = {link.pid for link in clients.client_of(asyncio.get_running_loop()).links.values()}
        assert len(pids) == 2
        failing = asyncio.create_task(until_it_fails(wild, aim))
        number = further = 0
        async with asyncio.timeout(HANG):
            while further < 50:
                further += failing.done()
                number += 1
                await other.send(number)
                assert await other.recv() == 2 * number
                await asyncio.sleep(0.002)
        assert isinstance(await failing, (RingCorrupted, WorkerDied, StreamClosed))
        await asyncio.wait_for(leave(stack.pop_all()), HANG)


async def until_it_fails(stream, aim):
    """Has its function write over the link now and then; what the stream says in the end."""
    seed = 0
    while True:
        seed += 1
        try:
            with contextlib.suppress(StreamClosed):  # what it failed with comes below
                await stream.send((aim, seed))
            await stream.recv()
            await asyncio.sleep(0.05)
        except Exception as error:
            return error


@pytest.mark.timeout(300)
@pytest.mark.parametrize("aim", corrupting_worker.TARGETS)
async def test_a_worker_that_writes_over_its_link(aim, long):
    for seed in range(40 if long else 2):
        await asyncio.wait_for(scene(aim, seed), 3 * HANG)
        await goes_on()
