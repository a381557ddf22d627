"""The first figures: what process mode costs and gains, as ratios within one run.

    python benches/figures.py [--quick]

Every ratio compares two things measured in turn, several times, in this very run; its median is
printed. Absolute numbers depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import velo
from velo import stream_fn

PAYLOAD = b"x" * 64


@stream_fn
async def passthrough(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for event in events:
        yield event


@stream_fn
async def burn(events: AsyncIterator[int]) -> AsyncIterator[int]:
    """Some 50 microseconds of plain Python per event."""
    total = 0
    async for event in events:
        for i in range(1_000):
            total += i ^ event
        yield total


async def bare(count: int) -> float:
    """Events per second of the function itself, with nothing around it."""

    async def source() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield PAYLOAD

    begin = time.perf_counter()
    async for _ in passthrough(source()):
        pass
    return count / (time.perf_counter() - begin)


async def fed(mode: str, count: int) -> float:
    """Events per second through one stream."""
    async with passthrough.options(mode=mode).open() as stream:
        async for _ in stream.feed([PAYLOAD] * 1_000):  # a warm worker, a ring of its final size
            pass
        begin = time.perf_counter()
        async for _ in stream.feed([PAYLOAD] * count):
            pass
        return count / (time.perf_counter() - begin)


async def burned(mode: str, count: int) -> float:
    """Events per second of a CPU-bound function over 8 streams, 2 workers."""
    fn = burn.options(mode=mode, workers=2 if mode == "process" else None)
    streams = [await fn.open() for _ in range(8)]

    async def drive(stream: velo.Stream[int, int]) -> None:
        async for _ in stream.feed(range(count // 8)):
            pass

    begin = time.perf_counter()
    await asyncio.gather(*map(drive, streams))
    rate = count / (time.perf_counter() - begin)
    for stream in streams:
        await stream.aclose()
    return rate


async def round_trips(mode: str, count: int) -> tuple[float, float]:
    """Microseconds of one event at a time, there and back: p50, p99."""
    times = []
    async with passthrough.options(mode=mode).open() as stream:
        for _ in range(count):
            begin = time.perf_counter()
            await stream.send(PAYLOAD)
            await stream.recv()
            times.append(time.perf_counter() - begin)
    cuts = statistics.quantiles(times[count // 10 :], n=100)
    return cuts[49] * 1e6, cuts[98] * 1e6


async def compare(
    rounds: int, one: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]]
) -> tuple[float, float, float]:
    """Run both in turn; medians of each, and of the ratios pair by pair."""
    pairs = [(await one(), await other()) for _ in range(rounds)]
    ones, others = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(ones), statistics.median(others), ratio


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    quick = parser.parse_args().quick
    events, rounds = (100_000, 3) if quick else (1_000_000, 5)
    print(
        f"velo {velo.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, medians of {rounds} rounds"
    )

    row = "{:<58} {:>12} {:>14} {:>7}"
    print(row.format("events/s", "velo", "beside it", "ratio"))
    for mode in ("inline", "process"):
        rate, floor, ratio = await compare(
            rounds, lambda m=mode: fed(m, events), lambda: bare(events)
        )
        what = f"feed, {mode}, 64 bytes / bare generator"
        print(row.format(what, f"{rate:,.0f}", f"{floor:,.0f}", f"{ratio:.2f}"))
    count = events // 20
    rate, floor, ratio = await compare(
        rounds,
        functools.partial(burned, "process", count),
        functools.partial(burned, "inline", count),
    )
    what = "about 50 us of Python per event, 8 streams, process / inline"
    print(row.format(what, f"{rate:,.0f}", f"{floor:,.0f}", f"{ratio:.2f}"))

    print(f"\n{'one event at a time, microseconds':<58} {'p50':>12} {'p99':>14}")
    for mode in ("inline", "process"):
        p50, p99 = await round_trips(mode, 2_000 if quick else 20_000)
        print(f"{mode:<58} {p50:>12.1f} {p99:>14.1f}")


if __name__ == "__main__":
    asyncio.run(main())
