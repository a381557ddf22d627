"""Rolling restart: no stream is cut, no result is lost."""

import asyncio
import os

import pytest

import functions
from helpers import HANG, alive, until, until_sync
from velo import stream_fn

pids = functions.pids.options(mode="process", workers=2)


@stream_fn(mode="process", workers=2)
async def numbered(events):
    count = 0
    async for event in events:
        count += 1
        yield count, event, os.getpid()


async def test_no_stream_is_cut_under_load(daemon):
    """Streams that last through every restart, and short ones all the time."""
    stop = asyncio.Event()
    seen = set()

    async def long_one():
        workers = set()
        async with numbered.open() as stream:
            number = 0
            while not stop.is_set():
                batch = list(range(number, number + 50))
                await stream.send_batch(batch)
                for event in batch:
                    number += 1
                    count, got, pid = await stream.recv()
                    assert (count, got) == (number, event)
                    workers.add(pid)
        assert len(workers) == 1
        return number

    async def short_ones():
        done = 0
        while not stop.is_set():
            results = await numbered.run(range(20))
            assert [(count, event) for count, event, _ in results] == [
                (number + 1, number) for number in range(20)
            ]
            seen.add(results[0][2])
            done += 1
        return done

    tasks = [asyncio.create_task(long_one()) for _ in range(4)]
    tasks += [asyncio.create_task(short_ones()) for _ in range(2)]
    await until(lambda: seen)
    for _ in range(3):
        daemon.restart()
        known = set(seen)
        await until(lambda: seen - known, HANG, lambda: daemon.status())
    stop.set()
    counts = await asyncio.wait_for(asyncio.gather(*tasks), HANG)
    assert all(counts)
    assert len(seen) >= 4


async def test_old_workers_end_with_their_last_stream(daemon):
    async with pids.open() as stream:
        await stream.send(0)
        old = await stream.recv()
        daemon.restart()
        assert (await pids.run([0]))[0] != old
        assert [w["pid"] for w in daemon.status()["workers"] if w["retiring"]] == [old]
        await stream.send(0)
        assert await stream.recv() == old
    await until(lambda: not alive(old))


def test_workers_that_always_stay_are_replaced_at_once(daemon_at):
    daemon = daemon_at("--workers", "2:2")

    def running():
        state = daemon.status()
        return {w["pid"] for w in state["workers"] if w["pid"] and not w["stopping"]}

    until_sync(lambda: len(running()) == 2)
    old, zygote = running(), daemon.status()["zygote"]
    daemon.restart()
    until_sync(lambda: len(running()) == 2 and not running() & old)
    until_sync(lambda: not any(map(alive, old)))
    assert daemon.status()["zygote"] not in (zygote, None)
    assert not alive(zygote)


@pytest.mark.parametrize("times", [5])
async def test_restarts_in_a_row(daemon, times):
    async with pids.open() as stream:
        for _ in range(times):
            daemon.restart()
            await stream.send(0)
            await stream.recv()
        assert await pids.run([0])
