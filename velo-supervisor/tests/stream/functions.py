"""Stream functions that the tests of the client for Rust open."""

import asyncio
import ctypes
import os
import random
import sys
import time
from pathlib import Path

from velo import stream_fn


@stream_fn
async def echo(events):
    async for event in events:
        yield event


@stream_fn
async def types(events):
    """What Python makes of an event."""
    async for event in events:
        yield repr(event)


@stream_fn
async def totals(events):
    total = 0
    async for event in events:
        total += event
        yield total
    yield -1


async def plain(events):
    """No `@stream_fn`: any async generator function will do."""
    async for event in events:
        yield event + 1


@stream_fn
async def values(events):
    """A result that the event names."""
    async for name in events:
        yield {
            "tuple": (1, "two", (3.0, [b"four", None])),
            "set": {7},
            "bytes": b"\xc1\x01\xc1\x05",
            "object": asyncio.sleep,
            "array": _array(),
        }[name]


def _array():
    try:
        import numpy
    except ImportError:
        return asyncio.sleep
    return numpy.arange(3)


@stream_fn
async def repeat(events):
    """As many results as the event says."""
    async for count in events:
        for number in range(count):
            yield (count, number)


@stream_fn
async def fails(events):
    async for event in events:
        yield event
        error = ValueError(f"no `{event}`")
        error.add_note("a note")
        raise error


@stream_fn
async def greets(events):
    yield "hello"
    async for event in events:
        yield event


@stream_fn
async def never_reads(events):
    yield os.getpid()
    await asyncio.Event().wait()


@stream_fn
async def returns_at_once(events):
    return
    yield


@stream_fn
async def pids(events):
    async for _ in events:
        yield os.getpid()


@stream_fn
async def waits(events):
    """Yields its worker's pid, and writes to a file when it is cancelled."""
    async for path in events:
        yield os.getpid()
        try:
            await asyncio.Event().wait()
        finally:
            with open(path, "w") as file:
                file.write("cancelled")


@stream_fn
async def sleeps(events):
    async for seconds in events:
        await asyncio.sleep(seconds)
        yield seconds


@stream_fn
async def blocks(events):
    async for seconds in events:
        time.sleep(seconds)
        yield seconds


@stream_fn
async def citizen(events):
    """Doubles numbers; writes over its link when it is told how."""
    sys.path.append(str(Path(__file__).parents[3] / "tests" / "python" / "support"))
    import corrupting_worker

    links = None
    async for event in events:
        if isinstance(event, list):
            if links is None:  # the newest one with both of its streams: all are alike otherwise
                links = corrupting_worker.Links()
                links.base, links.end = next(
                    (start, end)
                    for start, end in links.found
                    if ctypes.string_at(start + 128, 4) == b"\2\0\0\0"
                )
            aim, seed = event
            rng = random.Random(f"{aim} {seed}")
            for _ in range(rng.randrange(1, 4)):
                corrupting_worker.TARGETS[aim](links, rng)
            yield -1
        else:
            yield event * 2


@stream_fn
async def aims(events):
    """What there is to write over."""
    sys.path.append(str(Path(__file__).parents[3] / "tests" / "python" / "support"))
    import corrupting_worker

    async for _ in events:
        yield list(corrupting_worker.TARGETS)
