"""The gain of spinning, and its cost for other tasks. Each function returns figures by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from velo.bench import ours
from velo.bench.floors import Measured
from velo.bench.functions import burn_one, events, passthrough
from velo.bench.measure import percentiles

NAP = 0.001


def pinned(cores: int, name: str, *arguments: Any) -> Measured:
    """Measure a function of `velo.bench.ours` on a limited number of cores."""
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[:cores])  # the supervisor and the workers inherit it
    figures: Measured = getattr(ours, name)(*arguments)
    return figures


def beside_a_sibling(event: str, count: int) -> Measured:
    """Send one event and wait for its result, in a loop whose other task always has work."""

    async def run() -> Measured:
        times = []
        async with passthrough.options(mode="process").open() as stream, _sibling() as waits:
            for item in events(event, count):
                begin = time.perf_counter()
                await stream.send(item)
                await stream.recv()
                times.append(time.perf_counter() - begin)
        return {**percentiles(times), "turn_p99": percentiles(waits)["p99"]}

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _sibling() -> AsyncIterator[list[float]]:
    """Run a task that computes for about 50 µs, over and over; give how long it waits between."""
    waits: list[float] = []

    async def work() -> None:
        while True:
            burn_one(1)
            begin = time.perf_counter()
            await asyncio.sleep(0)
            waits.append(time.perf_counter() - begin)

    task = asyncio.create_task(work())
    try:
        yield waits
    finally:
        task.cancel()


def lateness(use: str, event: str, seconds: float) -> Measured:
    """Measure how late a timer of a millisecond is while one stream keeps the loop busy.

    Args:
        use: How the stream is used: `feed`, `send and recv`, or `nothing`.
        event: The kind of its events.
        seconds: The duration of the measurement.

    """

    async def feed(stream: Any, over: Callable[[], bool]) -> int:
        def source() -> Any:
            while not over():
                yield from events(event, 1_000)

        got = 0
        async for _ in stream.feed(source()):
            got += 1
        return got

    async def send_and_recv(stream: Any, over: Callable[[], bool]) -> int:
        item, *_ = events(event, 1)
        got = 0
        while not over():
            await stream.send(item)
            await stream.recv()
            got += 1
        return got

    async def nothing(stream: Any, over: Callable[[], bool]) -> int:
        await asyncio.sleep(seconds)
        return 0

    keep_busy = {"feed": feed, "send and recv": send_and_recv, "nothing": nothing}[use]

    async def run() -> Measured:
        async with passthrough.options(mode="process").open() as stream:
            await stream.send(1)
            await stream.recv()
            late: list[float] = []
            end = time.perf_counter() + seconds
            timer = asyncio.create_task(_late(late))
            got = await keep_busy(stream, lambda: time.perf_counter() > end)
            timer.cancel()
        return {"rate": got / seconds, **percentiles(late)}

    return asyncio.run(run())


async def _late(late: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(NAP)
        late.append(time.perf_counter() - begin - NAP)


def many_workers(workers: int, event: str, count: int) -> Measured:
    """Feed two streams on each worker, all at once."""

    async def run() -> Measured:
        fn = passthrough.options(mode="process", workers=workers)
        streams = [await fn.open() for _ in range(2 * workers)]
        for stream in streams:
            await stream.send(1)
            await stream.recv()
        items = events(event, count // len(streams))

        return await ours.together(streams, lambda stream: stream.feed(items), len(items))

    return asyncio.run(run())
