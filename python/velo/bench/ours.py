"""The measurements of velo. Each function returns figures by name."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

from velo import Stream, _core
from velo.bench.floors import Measured, PingPong, SeparateProcesses, frame_of, mean_alone
from velo.bench.functions import burn, corner, events, mean, passthrough
from velo.bench.measure import percentiles
from velo.bench.processes import memory

Mode = Literal["inline", "process", "ray"]


def feed(mode: Mode, event: str, count: int) -> Measured:
    """Feed one stream."""

    async def run() -> Measured:
        async with passthrough.options(mode=mode).open() as stream:
            async for _ in stream.feed(events(event, 1_000)):
                pass  # a warm worker, a ring of its final size
            items, got = events(event, count), 0
            begin = time.perf_counter()
            async for _ in stream.feed(items):
                got += 1
            rate = count / (time.perf_counter() - begin)
            assert got == count
            return {"rate": rate}

    return asyncio.run(run())


def run(mode: Mode, event: str, count: int) -> Measured:
    """Run a list through the function."""

    async def run() -> Measured:
        items = events(event, count)
        begin = time.perf_counter()
        results = await passthrough.options(mode=mode).run(items)
        rate = count / (time.perf_counter() - begin)
        assert len(results) == count
        return {"rate": rate}

    return asyncio.run(run())


def round_trips(mode: Mode, event: str, count: int) -> Measured:
    """Send one event and wait for its result."""

    async def run() -> Measured:
        times = []
        async with passthrough.options(mode=mode).open() as stream:
            for item in events(event, count + count // 10):
                begin = time.perf_counter()
                await stream.send(item)
                await stream.recv()
                times.append(time.perf_counter() - begin)
        return percentiles(times[count // 10 :])  # the first ones warm up

    return asyncio.run(run())


def round_trips_after_a_pause(event: str, count: int, pause: float) -> Measured:
    """Send one event after both sides have slept for `pause` seconds, in turn with a ping-pong."""

    async def run(floor: PingPong) -> Measured:
        async with passthrough.options(mode="process").open() as stream:

            async def round() -> None:
                await stream.send(item)
                await stream.recv()

            item, *_ = events(event, 1)
            return await _in_turn(floor, round, count, pause)

    return _beside_ping_pong(run)


def open_to_first_result(count: int, pause: float) -> Measured:
    """Open a stream on a worker that has another one, in turn with a ping-pong."""

    async def run(floor: PingPong) -> Measured:
        fn = passthrough.options(mode="process", workers=1)
        opened: list[Stream[object, object]] = []
        async with fn.open() as keeps:  # its worker stays
            await keeps.send(1)
            await keeps.recv()

            async def round() -> None:
                stream = await fn.open()
                opened.append(stream)
                await stream.send(1)
                await stream.recv()

            async def clean_up() -> None:
                await opened.pop().aclose()

            return await _in_turn(floor, round, count, pause, clean_up)

    return _beside_ping_pong(run)


def _beside_ping_pong(run: Callable[[PingPong], Coroutine[Any, Any, Measured]]) -> Measured:
    floor = PingPong()
    try:
        return asyncio.run(run(floor))
    finally:
        floor.close()


async def _in_turn(
    floor: PingPong,
    round: Callable[[], Awaitable[None]],
    count: int,
    pause: float,
    clean_up: Callable[[], Awaitable[None]] | None = None,
) -> Measured:
    ours, theirs = [], []
    for _ in range(count):
        await asyncio.sleep(pause)
        theirs.append(await floor.round())
        await asyncio.sleep(pause)
        begin = time.perf_counter()
        await round()
        ours.append(time.perf_counter() - begin)
        if clean_up is not None:
            await clean_up()
    return {**percentiles(ours), "floor": percentiles(theirs)["p50"]}


def new_worker() -> Measured:
    """Open a stream that needs another worker, while the zygote runs already."""

    async def run() -> Measured:
        async with passthrough.options(mode="process", workers=1).open() as first:
            await first.send(1)
            await first.recv()
            begin = time.perf_counter()
            async with passthrough.options(mode="process", workers=2).open() as second:
                await second.send(1)
                await second.recv()
                took = time.perf_counter() - begin
            assert len(_workers()) == 2
            return {"ms": took * 1e3}

    return asyncio.run(run())


FIRST = """
import time
begin = time.perf_counter()
from velo.bench.functions import passthrough
passthrough.options(mode="process").run_sync([1])
print(time.perf_counter() - begin)
"""


def fresh_process() -> Measured:
    """Import velo and get a first result, in an interpreter that has just started."""
    return {"ms": float(_python(FIRST)) * 1e3}


def import_velo() -> Measured:
    """Time `import velo`, less the start of an interpreter without imports."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        _python("import velo")
        middle = time.perf_counter()
        _python("pass")
        times.append((middle - begin) - (time.perf_counter() - middle))
    return {"ms": sorted(times)[2] * 1e3}


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cpu_bound(mode: Mode, workers: int | None, streams: int, count: int) -> Measured:
    """Compute about 50 µs of Python per event."""

    async def run() -> Measured:
        opened = await _burning(mode, workers, streams)
        each = count // streams
        return await together(opened, lambda stream: stream.feed(range(each)), each)

    return asyncio.run(run())


def cpu_bound_in_turn(workers: int, streams: int, count: int, turns: int) -> Measured:
    """Compute the same in worker processes, in turn with as many processes without any IPC."""

    async def run(floor: SeparateProcesses) -> Measured:
        opened = await _burning("process", workers, streams)
        each = count // streams
        ours = theirs = 0.0
        for _ in range(turns):
            theirs += floor.run(count)
            ours += await _drive(opened, lambda stream: stream.feed(range(each)), each)
        for stream in opened:
            await stream.aclose()
        return {"rate": count * turns / ours, "floor": count * turns / theirs}

    floor = SeparateProcesses(workers)
    try:
        return asyncio.run(run(floor))
    finally:
        floor.close()


async def _burning(mode: Mode, workers: int | None, streams: int) -> list[Stream[Any, Any]]:
    """Open streams on workers that run already."""
    fn = burn.options(mode=mode, workers=workers)
    opened = [await fn.open() for _ in range(streams)]
    for stream in opened:
        await stream.send(0)
        await stream.recv()
    return opened


def frames_in_turn(shape: list[int], ahead: int, streams: int, count: int, turns: int) -> Measured:
    """Feed frames to streams with a worker each, in turn with reducing them in this process.

    One frame, which stays in the processor's cache, and as many as take turns in the ring.
    """
    frame = frame_of(shape)
    several = [frame.copy() for _ in range(2 * ahead)]
    each = count // streams
    count = each * streams

    async def run() -> Measured:
        fn = mean.options(mode="process", buffer=ahead, workers=streams)
        opened = [await fn.open() for _ in range(streams)]
        for stream in opened:
            async for _ in stream.feed([frame] * 4 * ahead):
                pass  # warm workers, rings of their final size
        ours = one = other = 0.0
        for _ in range(turns):
            one += mean_alone([frame], count)
            ours += await _drive(opened, lambda stream: stream.feed([frame] * each), each)
            other += mean_alone(several, count)
        for stream in opened:
            await stream.aclose()
        total = count * turns
        return {"rate": total / ours, "floor": total / one, "several": total / other}

    return asyncio.run(run())


def corners(shape: list[int], ahead: int, lent: bool, count: int) -> Measured:
    """Write one number to every frame, in memory on loan or in the client's own, and read it there.

    All other work of the two sides on a frame takes the same time in either memory.
    """

    async def run() -> Measured:
        own = frame_of(shape)

        async with corner.options(mode="process", buffer=ahead, workers=1).open() as stream:

            async def some(count: int) -> None:
                for number in range(count + ahead):
                    if number < count:
                        frame = await stream.loan(shape, own.dtype) if lent else own
                        frame[0, 0, 0] = number % 251
                        await stream.send(frame)
                    if number >= ahead:
                        assert await stream.recv() == (number - ahead) % 251

            await some(8 * ahead)  # a warm worker, memory that was used before
            begin = time.perf_counter()
            await some(count)
            return {"rate": count / (time.perf_counter() - begin)}

    return asyncio.run(run())


async def together(
    opened: list[Stream[Any, Any]],
    feed: Callable[[Stream[Any, Any]], AsyncIterator[Any]],
    each: int,
) -> Measured:
    """Feed all streams at once, with `each` events per stream, and close them."""
    seconds = await _drive(opened, feed, each)
    for stream in opened:
        await stream.aclose()
    return {"rate": each * len(opened) / seconds}


async def _drive(
    opened: list[Stream[Any, Any]],
    feed: Callable[[Stream[Any, Any]], AsyncIterator[Any]],
    each: int,
) -> float:
    """Feed all streams at once, with `each` events per stream; returns the seconds that took."""

    async def drive(stream: Stream[Any, Any]) -> int:
        return len([result async for result in feed(stream)])

    begin = time.perf_counter()
    got = sum(await asyncio.gather(*map(drive, opened)))
    seconds = time.perf_counter() - begin
    assert got == each * len(opened)
    return seconds


def many_streams(count: int, total: int) -> Measured:
    """Open many streams: measure the cost of each, and events through all of them in turn."""

    async def run() -> Measured:
        fn = passthrough.options(mode="process", workers=2)
        event, *_ = events("64 bytes", 1)
        async with fn.open() as one, fn.open() as other:
            for stream in (one, other):
                await stream.send(event)
                await stream.recv()
            before = memory_everywhere()
            streams = [await fn.open() for _ in range(count)]
            for stream in streams:
                await stream.send(event)
            for stream in streams:
                await stream.recv()
            each = (memory_everywhere() - before) / count / 1024
            burst = [event] * max(total // count, 1)
            await _bursts(streams, burst, count)  # rings of their final size
            alone = await _bursts([one], burst, count)
            together = await _bursts(streams, burst, count)
            for stream in streams:
                await stream.aclose()
        return {"KiB": each, "alone": alone, "together": together}

    return asyncio.run(run())


async def _bursts(streams: list[Stream[object, object]], burst: list[object], turns: int) -> float:
    """Events per second of bursts that go round over the streams, 100 of them on their way."""
    begin, got = time.perf_counter(), 0
    ahead = min(100, len(streams))
    for start in range(0, turns, ahead):
        some = [streams[number % len(streams)] for number in range(start, start + ahead)]
        for stream in some:
            await stream.send_batch(burst)
        for stream in some:
            left = len(burst)
            while left:
                left -= len(await stream.recv_batch())
            got += len(burst)
    return got / (time.perf_counter() - begin)


def idle_streams(count: int, seconds: float) -> Measured:
    """Keep streams open without sending any event."""

    async def run() -> Measured:
        fn = passthrough.options(mode="process", workers=2)
        streams = [await fn.open() for _ in range(count)]
        for stream in streams:
            await stream.send(1)
            await stream.recv()
        await asyncio.sleep(0.2)
        before = sum(map(_ticks, [os.getpid(), *_workers()]))
        await asyncio.sleep(seconds)
        used = sum(map(_ticks, [os.getpid(), *_workers()])) - before
        for stream in streams:
            await stream.aclose()
        return {"percent": 100 * used / os.sysconf("SC_CLK_TCK") / seconds}

    return asyncio.run(run())


def _workers() -> list[int]:
    status = _core.status()
    return [worker.pid for worker in status.workers] if status else []


def memory_everywhere() -> float:
    """Bytes of this process and its workers; shared memory counts once."""
    return float(sum(map(memory, [os.getpid(), *_workers()])))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
