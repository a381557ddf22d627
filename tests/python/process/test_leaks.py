"""Many streams, at once and in sequence, leave memory and descriptors where they were."""

import asyncio
import contextlib
import gc
import sys
from asyncio.subprocess import PIPE

import psutil
import pytest

import functions
from helpers import HANG, fall_silent, open_fds
from velo import Stream, stream_fn

# Opens streams, and leaves them alone until its input ends.
IDLE = """
import asyncio, sys
from velo import stream_fn

@stream_fn(mode=sys.argv[1])
async def echo(events):
    async for event in events:
        yield event

async def main():
    streams = [await echo.open() for _ in range(100)]
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for stream in streams:
        await stream.aclose()

asyncio.run(main())
"""

pytestmark = [pytest.mark.embedded, pytest.mark.slow]


async def test_a_thousand_concurrent_streams(mode):
    summing = functions.running_sum.options(mode=mode)
    streams = await asyncio.gather(*(open_it(summing) for _ in range(1000)))
    for step in (1, 2, 3):
        await asyncio.gather(*(send(stream, number) for number, stream in enumerate(streams)))
        for number, stream in enumerate(streams):
            assert await stream.recv() == number * step
    await asyncio.gather(*(stream.aclose() for stream in streams))


async def open_it(fn):
    return await fn.open()


async def send(stream, event):
    await stream.send(event)


def resident(pids):
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


async def use(fn, count):
    for number in range(count):
        async with fn.open() as stream:
            await stream.send(number)
            assert await stream.recv() == number


async def test_opening_and_closing_in_sequence(mode, long):
    echo = functions.echo.options(mode=mode, workers=1)
    await use(echo, 1000)
    pids = [psutil.Process().pid]
    if mode == "process":
        pids += await functions.pids.options(mode=mode, workers=1).run([0])
    gc.collect()
    fds, memory = len(open_fds()), resident(pids)
    theirs = psutil.Process(pids[-1]).num_fds()
    await use(echo, 100_000 if long else 2_000)
    gc.collect()
    assert len(open_fds()) <= fds
    assert psutil.Process(pids[-1]).num_fds() <= theirs
    assert resident(pids) - memory < 8_000_000


async def test_abandoned_streams_in_sequence(mode):
    """Cancelled, failed, dropped with results in them: all come back."""
    echo = functions.fails.options(mode=mode, workers=1, max_concurrent=5, overflow="error")
    fds = None
    for number in range(300):
        if number == 50:
            gc.collect()
            fds = len(open_fds())
        stream = await echo.open()
        await stream.send_batch([1, 2, bytes(100_000)])
        if number % 3 == 0:
            await stream.__aexit__(ValueError, ValueError(), None)
        elif number % 3 == 1:
            await stream.aclose()
        else:
            await stream.send("own")
            with contextlib.suppress(functions.OwnError):
                await stream.aclose()
    gc.collect()
    assert len(open_fds()) <= fds


async def test_large_events_in_sequence_leave_memory(mode):
    """A ring that has grown is given back with its stream."""

    @stream_fn(mode=mode, workers=1)
    async def length(events):
        async for event in events:
            yield len(event)

    large = bytes(20_000_000)

    async def some():
        for _ in range(5):
            assert await length.run([large] * 2) == [20_000_000] * 2

    await some()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        await some()
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 45_000_000


async def test_open_streams_are_idle_for_free(mode):
    """A hundred open streams that nobody uses wake nobody up, in a program of their own."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", IDLE, mode), stdin=PIPE, stdout=PIPE
    )
    async with asyncio.timeout(HANG):
        assert await program.stdout.readline() == b"open\n"
    below = psutil.Process(program.pid).children(recursive=True)
    assert mode == "inline" or below
    await fall_silent([program.pid, *(process.pid for process in below)])
    program.stdin.close()
    assert await program.wait() == 0


async def test_keys_in_sequence_leave_nothing(mode):
    """A thousand keys, ten at a time."""
    limited = functions.echo.options(mode=mode, max_concurrent=10)
    fds = len(open_fds()) if mode == "inline" else None
    count = 0
    async for _ in limited.keyed(range(1000), key=lambda event: event):
        count += 1
    assert count == 1000
    if fds is not None:
        assert len(open_fds()) <= fds
    streams = [await limited.open() for _ in range(10)]
    for stream in streams:
        await stream.aclose()


@pytest.mark.parametrize("source", ["plain", "async"])
async def test_keyed_that_fails_leaves_nothing_to_the_garbage_collector(mode, source):
    async def slowly(events):
        for event in events:
            yield event

    async def fail():
        events = [1, 2, 0]
        given = events if source == "plain" else slowly(events)
        with contextlib.suppress(ZeroDivisionError):
            async for _ in functions.echo.options(mode=mode).keyed(given, key=lambda e: 1 / e):
                pass

    def streams():
        return sum(isinstance(thing, Stream) for thing in gc.get_objects())

    await fail()
    gc.collect()
    before = streams()
    gc.disable()
    try:
        for _ in range(20):
            await fail()
        assert streams() < before + 5
    finally:
        gc.enable()
