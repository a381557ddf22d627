"""Stream functions for tests of live keys, and the reading of their results."""

import asyncio
import os

from functions import OwnError
from velo import stream_fn


@stream_fn
async def counts(events):
    """Counts its events: one result per event, and one after the loop."""
    count = 0
    async for event in events:
        count += 1
        yield event, count
    yield "end", count


@stream_fn
async def repeats(events):
    """Yields as often as an event says, and a greeting before all events."""
    yield "hello"
    async for event in events:
        for number in range(event):
            yield number


@stream_fn
async def gated(events):
    """Waits at an event that is the name of a file until there is one."""
    async for event in events:
        while isinstance(event, str) and not os.path.exists(event):
            await asyncio.sleep(0.002)
        yield event


@stream_fn
async def gated_runs(events):
    """The same, and says when it ends. Raises events that are exceptions."""
    async for event in events:
        while isinstance(event, str) and not os.path.exists(event):
            await asyncio.sleep(0.002)
        if isinstance(event, Exception):
            raise event
        yield event
    yield "end"


@stream_fn
async def fails(events):
    count = 0
    async for event in events:
        count += 1
        if event == "fail":
            raise OwnError("at an event", code=3)
        await asyncio.sleep(0)
        yield event, count


@stream_fn
async def two(events):
    """Returns after two events, whatever comes."""
    count = 0
    async for event in events:
        yield event
        count += 1
        if count == 2:
            return


async def read(keys, count):
    """The next `count` results of the iteration."""
    results = aiter(keys)
    return [await anext(results) for _ in range(count)]
