"""Functions that are made for each request are forgotten once nobody holds them."""

import asyncio
import gc
import types

from velo import stream_fn
from velo._diagnostics import function_stats


def count_of(name):
    """How many functions of this name there are here."""
    gc.collect()
    return sum(
        isinstance(each, types.FunctionType) and each.__name__ == name for each in gc.get_objects()
    )


@stream_fn
async def counts(events):
    async for name in events:
        yield count_of(name)


def make(number, mode):
    async def short_lived(events):
        async for event in events:
            yield event + number

    return stream_fn(mode=mode, **({"workers": 1} if mode == "process" else {}))(short_lived)


async def test_closures_are_forgotten(mode, long):
    """By the program and by the worker, whether they are called or made again by `.options`."""
    many = 100_000 if long else 200
    counting = counts.options(mode=mode)
    async with counting.open() as stream:
        for number in range(many):
            fn = make(number, mode)
            fn = fn.options(buffer=8) if number % 2 else fn
            assert await fn.run([1]) == [number + 1]
        del fn
        await counting.run([""])  # the last ones are told as the next stream opens
        await stream.send("short_lived")
        there = await stream.recv()
    assert count_of("short_lived") <= 1
    assert there <= 3
    assert len(function_stats._gone) <= 2 * function_stats._EVERY


async def test_what_is_held_is_kept(mode):
    """A function that others were made beside opens streams as before, and so does a stream."""
    held = make(1000, mode)
    stream = await make(2000, mode).open()
    for number in range(50):
        await make(number, mode).run([1])
    gc.collect()
    await stream.send(1)
    assert await stream.recv() == 2001
    await stream.aclose()
    assert await held.run([1]) == [1001]
    assert await asyncio.gather(*(held.run([n]) for n in range(3))) == [[1000], [1001], [1002]]
