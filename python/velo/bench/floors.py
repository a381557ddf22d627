"""The floors: the same work without velo. Each function returns figures by name."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from velo.bench.functions import burn_one, events, mean_of
from velo.bench.measure import percentiles

Measured = dict[str, float]


async def _passthrough(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for one in events:
        yield one


def bare_generator(event: str, count: int) -> Measured:
    """Iterate over the function itself."""
    items = events(event, count)

    async def source() -> AsyncIterator[Any]:
        for item in items:
            yield item

    async def run() -> Measured:
        begin = time.perf_counter()
        got = 0
        async for _ in _passthrough(source()):
            got += 1
        assert got == count
        return {"rate": count / (time.perf_counter() - begin)}

    return asyncio.run(run())


def queue_pair(event: str, count: int) -> Measured:
    """Go through two `asyncio.Queue`s and a task between them."""
    items = events(event, count)

    async def run() -> Measured:
        to: asyncio.Queue[Any] = asyncio.Queue(256)
        back: asyncio.Queue[Any] = asyncio.Queue(256)

        async def work() -> None:
            while True:
                await back.put(await to.get())

        async def feed() -> None:
            for item in items:
                await to.put(item)

        begin = time.perf_counter()
        tasks = [asyncio.create_task(work()), asyncio.create_task(feed())]
        for _ in range(count):
            await back.get()
        rate = count / (time.perf_counter() - begin)
        for task in tasks:
            task.cancel()
        return {"rate": rate}

    return asyncio.run(run())


def memcpy(size: int, count: int) -> Measured:
    """Copy bytes into memory whose pages are present."""
    source, target = bytes(size), memoryview(bytearray(size))
    begin = time.perf_counter()
    for _ in range(count):
        target[:] = source
    return {"rate": count / (time.perf_counter() - begin)}


def ping_pong_blocking(count: int, pause: float) -> Measured:
    """Round trips between two processes that block on eventfds."""
    here, there = os.eventfd(0), os.eventfd(0)
    child = os.fork()
    if child == 0:
        for _ in range(count):
            os.eventfd_read(there)
            os.eventfd_write(here, 1)
        os._exit(0)
    times = []
    for _ in range(count):
        time.sleep(pause)
        begin = time.perf_counter()
        os.eventfd_write(there, 1)
        os.eventfd_read(here)
        times.append(time.perf_counter() - begin)
    os.waitpid(child, 0)
    return percentiles(times)


class PingPong:
    """Round trips between two event loops, in two processes, that wait on eventfds.

    Forks, so it has to be made before this process has threads.
    """

    def __init__(self) -> None:
        self._here, self._there = os.eventfd(0), os.eventfd(0)
        self._child = os.fork()
        if self._child == 0:
            try:
                asyncio.run(_answer(self._there, self._here))
            finally:
                os._exit(0)
        self._wait: Callable[[], asyncio.Future[None]] | None = None

    async def round(self) -> float:
        """Go there and back; returns the seconds that took."""
        if self._wait is None:
            self._wait = _waiter(self._here)
        begin = time.perf_counter()
        waiting = self._wait()
        os.eventfd_write(self._there, 1)
        await waiting
        return time.perf_counter() - begin

    def close(self) -> None:
        """End the other process."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


def _waiter(fd: int) -> Callable[[], asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []

    def came() -> None:
        os.eventfd_read(fd)
        waiting.pop().set_result(None)

    def wait() -> asyncio.Future[None]:
        waiting.append(loop.create_future())
        return waiting[-1]

    loop.add_reader(fd, came)
    return wait


async def _answer(mine: int, theirs: int) -> None:
    wait = _waiter(mine)
    while True:
        await wait()
        os.eventfd_write(theirs, 1)


class SeparateProcesses:
    """Processes that compute, without any IPC between them.

    Forks, so it has to be made before this process has threads.
    """

    def __init__(self, processes: int) -> None:
        self._children = [self._fork() for _ in range(processes)]

    def _fork(self) -> tuple[int, int, int]:
        (orders, order), (answer, answers) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                while count := os.read(orders, 8):
                    asyncio.run(_burn(int.from_bytes(count)))
                    os.write(answers, b"x")
            finally:
                os._exit(0)
        return child, order, answer

    def run(self, count: int) -> float:
        """Compute events in all processes together; returns the seconds that took."""
        begin = time.perf_counter()
        for _, order, _ in self._children:
            os.write(order, (count // len(self._children)).to_bytes(8))
        for _, _, answer in self._children:
            os.read(answer, 1)
        return time.perf_counter() - begin

    def close(self) -> None:
        """End them."""
        for child, _, _ in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def cores_given(processes: int, seconds: float) -> Measured:
    """Return the number of cores that the machine gives: the work of all processes over one's work.

    A shared machine may give less than its number of cores.
    """
    one = several = 0
    for _ in range(4):
        one += _computed(1, seconds)
        several += _computed(processes, seconds)
    return {"cores": several / one}


def _computed(processes: int, seconds: float) -> int:
    pipes = []
    for _ in range(processes):
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                count, end = 0, time.perf_counter() + seconds
                while time.perf_counter() < end:
                    burn_one(count)
                    count += 1
                os.write(writing, count.to_bytes(8, "little"))
            finally:
                os._exit(0)
        os.close(writing)
        pipes.append(reading)
    total = 0
    for reading in pipes:
        with os.fdopen(reading, "rb") as pipe:
            total += int.from_bytes(pipe.read(), "little")
        os.wait()
    return total


async def _burn(count: int) -> None:
    async def generator() -> AsyncIterator[int]:
        for event in range(count):
            yield burn_one(event)

    async for _ in generator():
        pass


def mean_alone(frames: list[Any], count: int) -> float:
    """Reduce `count` frames in place, the given ones in turn; returns the seconds that took."""
    some = itertools.islice(itertools.cycle(frames), count)
    begin = time.perf_counter()
    for frame in some:
        mean_of(frame)
    return time.perf_counter() - begin


def frame_of(shape: list[int]) -> Any:
    """Return a frame of random bytes."""
    import numpy as np

    return np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
