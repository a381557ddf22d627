"""velo with many keys. Each function gives figures by name."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

from velo import StreamFn, _core
from velo.bench.floors import Measured, SeparateProcesses
from velo.bench.keyed_events import (
    FIELD,
    count_and_burn,
    count_and_wait,
    count_events,
    events_of_keys,
    is_slow,
)
from velo.bench.ours import Mode, memory_everywhere

__all__ = [
    "burn_in_turn",
    "memory",
    "on_ray",
    "opening",
    "recovery",
    "requests",
    "slow_keys",
    "throughput",
]


async def _ready(
    fn: StreamFn[Any, Any], mode: Mode, workers: int | None, field: Any = 0
) -> StreamFn[Any, Any]:
    """Return the function once each of its workers has run it."""
    fn = fn.options(mode=mode, workers=workers)
    kind = next(kind for kind, where in FIELD.items() if where == field)
    warm = events_of_keys(kind, 64, 1_000)
    async for _ in fn.keyed(warm, key=field):
        pass
    return fn


def throughput(
    mode: Mode, workers: int | None, kind: str, keys: int, count: int, spread: str
) -> Measured:
    """Count the events of each key; opening and closing the keys counts."""
    items, field = events_of_keys(kind, keys, count, spread), FIELD[kind]

    async def run() -> Measured:
        fn = await _ready(count_events, mode, workers, field)
        got, begin = 0, time.perf_counter()
        async for _ in fn.keyed(items, key=field):
            got += 1
        rate = count / (time.perf_counter() - begin)
        assert got == count
        return {"rate": rate}

    return asyncio.run(run())


def on_ray(kind: str, keys: int, count: int, spread: str) -> Measured:
    """Do the same as `throughput` on a Ray cluster of this machine alone."""
    from velo.bench.peers.ray_by_key import one_node

    one_node()
    return throughput("ray", None, kind, keys, count, spread)


def slow_keys(mode: Mode, workers: int | None, keys: int, count: int, slow: bool) -> Measured:
    """Count the events of the keys that are not slow, with slow keys beside them or without."""
    items = events_of_keys("tuples", keys, count)
    others = sum(not is_slow(key) for key, _ in items)
    pending = 10_000 + count - others  # the events of slow keys must not fill `max_pending`

    async def run() -> Measured:
        fn = await _ready(count_and_wait if slow else count_events, mode, workers)
        got, begin = 0, time.perf_counter()
        async for key, _ in fn.keyed(items, key=0, max_pending=pending):
            got += not is_slow(key)
            if got == others:
                return {"rate": others / (time.perf_counter() - begin)}
        raise AssertionError(f"{others - got} results are missing")

    return asyncio.run(run())


def burn_in_turn(workers: int, keys: int, count: int, turns: int) -> Measured:
    """Compute for each event, in turn with as many processes without any IPC."""
    items = events_of_keys("tuples", keys, count)

    async def run(floor: SeparateProcesses) -> Measured:
        fn = await _ready(count_and_burn, "process", workers)
        ours = theirs = 0.0
        for _ in range(turns):
            theirs += floor.run(count)
            begin = time.perf_counter()
            async for _ in fn.keyed(items, key=0):
                pass
            ours += time.perf_counter() - begin
        return {"rate": count * turns / ours, "floor": count * turns / theirs}

    floor = SeparateProcesses(workers)
    try:
        return asyncio.run(run(floor))
    finally:
        floor.close()


def opening(mode: Mode, workers: int | None, keys: int) -> Measured:
    """Open keys: microseconds for each, its first event and result included."""
    items = events_of_keys("tuples", keys, keys)

    async def run() -> Measured:
        fn = await _ready(count_events, mode, workers)
        got, begin = 0, time.perf_counter()
        async for _ in fn.keyed(items, key=0):
            got += 1
            if got == keys:
                took = time.perf_counter() - begin
        return {"us": took / keys * 1e6}

    return asyncio.run(run())


def memory(mode: Mode, workers: int | None, keys: int) -> Measured:
    """Keep keys that have handled one event: KiB for each, in the client and the workers."""

    async def run() -> Measured:
        fn = await _ready(count_events, mode, workers)
        over = asyncio.Event()

        async def source() -> AsyncIterator[tuple[int, int]]:
            for key in range(keys):
                yield key, 0
            await over.wait()

        got, before, each = 0, memory_everywhere(), 0.0
        async for _ in fn.keyed(source(), key=0):
            got += 1
            if got == keys:
                each = (memory_everywhere() - before) / keys / 1024
                over.set()
        return {"KiB": each}

    return asyncio.run(run())


def requests(mode: Mode, workers: int | None, keys: int, tasks: int, each: int) -> Measured:
    """Request answers from many tasks at once, each of which has one request open at a time."""

    async def run() -> Measured:
        fn = await _ready(count_events, mode, workers)
        async with fn.keys(max_pending=max(10_000, tasks)) as users:

            async def user(first: int) -> None:
                for number in range(each):
                    key = (first + number * tasks) % keys
                    await users.request(key, (key, number))

            await asyncio.gather(*map(user, range(tasks)))  # the keys are open
            begin = time.perf_counter()
            await asyncio.gather(*map(user, range(tasks)))
            return {"rate": tasks * each / (time.perf_counter() - begin)}

    return asyncio.run(run())


def recovery(keys: int) -> Measured:
    """Kill the worker of open keys: milliseconds until every key has its next result.

    `undisturbed` is the time until every key has its next result without that.
    """

    async def run() -> Measured:
        fn = await _ready(count_events.options(recover="replay"), "process", 1)
        async with fn.keys(max_pending=2 * keys + 10_000) as users:
            results = aiter(users)

            async def one_each() -> float:
                begin = time.perf_counter()
                for key in range(keys):
                    await users.send(key, (key, 0))
                for _ in range(keys):
                    await anext(results)
                return (time.perf_counter() - begin) * 1e3

            await one_each()  # the keys are open
            undisturbed = await one_each()
            status = _core.status()
            assert status is not None
            (worker,) = status.workers
            os.kill(worker.pid, signal.SIGKILL)
            return {"ms": await one_each(), "undisturbed": undisturbed}

    return asyncio.run(run())
