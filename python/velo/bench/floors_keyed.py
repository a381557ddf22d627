"""The floor of `keyed`: a dict, and a bare generator for each key."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from velo.bench.floors import Measured
from velo.bench.keyed_events import FIELD, count_events, events_of_keys
from velo.bench.processes import memory

__all__ = ["memory_of_generators", "opening_generators", "throughput_of_generators"]

_bare: Any = count_events.__wrapped__  # type: ignore[attr-defined]


class _Generators:
    """Runs the function once for each key."""

    def __init__(self, field: Any) -> None:
        self._field = field
        self._running: dict[Any, tuple[list[Any], AsyncIterator[Any]]] = {}

    async def handle(self, events: list[Any]) -> None:
        """Hand each event to the generator of its key, and take its result."""
        field, running = self._field, self._running
        for event in events:
            key = event[field]
            found = running.get(key)
            if found is None:
                queue: list[Any] = []
                found = running[key] = queue, _bare(_source(queue))
            found[0].append(event)
            await anext(found[1])


async def _source(queue: list[Any]) -> AsyncIterator[Any]:
    while True:
        yield queue.pop()


def throughput_of_generators(kind: str, keys: int, count: int, spread: str) -> Measured:
    """Count the events of each key; beginning the generators counts."""
    items = events_of_keys(kind, keys, count, spread)

    async def run() -> Measured:
        begin = time.perf_counter()
        await _Generators(FIELD[kind]).handle(items)
        return {"rate": count / (time.perf_counter() - begin)}

    return asyncio.run(run())


def opening_generators(keys: int) -> Measured:
    """Begin generators: microseconds for each, its first event and result included."""
    items = events_of_keys("tuples", keys, keys)

    async def run() -> Measured:
        begin = time.perf_counter()
        await _Generators(FIELD["tuples"]).handle(items)
        return {"us": (time.perf_counter() - begin) / keys * 1e6}

    return asyncio.run(run())


class _OnePlace:
    """The events of a generator, in the least memory: the next one."""

    __slots__ = ("event",)

    def __init__(self, event: Any) -> None:
        self.event = event

    def __aiter__(self) -> _OnePlace:
        return self

    async def __anext__(self) -> Any:
        return self.event


def memory_of_generators(keys: int) -> Measured:
    """Keep generators that have handled one event: KiB for each, with an entry in a dict."""

    async def run() -> Measured:
        running: dict[int, AsyncIterator[Any]] = {}
        before = memory(os.getpid())
        for key in range(keys):
            generator = running[key] = _bare(_OnePlace(None))
            await anext(generator)
        return {"KiB": (memory(os.getpid()) - before) / keys / 1024}

    return asyncio.run(run())
