"""Ray by hand, with many keys: an actor for each core, lists of 256, a dict in each actor."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from typing import Any

import ray

from velo.bench.floors import Measured
from velo.bench.keyed_events import FIELD, events_of_keys

__all__ = ["by_hand", "one_node"]

BATCH = 256
# The most lists in flight for each actor: more make it no faster.
AHEAD = 4


class _Counter:
    """Counts the events of its keys."""

    def __init__(self) -> None:
        self._counts: dict[Any, int] = {}

    def count(self, field: Any, events: list[Any]) -> list[tuple[Any, int]]:
        counts, results = self._counts, []
        for event in events:
            key = event[field]
            count = counts[key] = counts.get(key, 0) + 1
            results.append((key, count))
        return results


def one_node() -> None:
    """Start Ray on this machine alone."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=256 << 20,
    )


def by_hand(actors: int, kind: str, keys: int, count: int, spread: str) -> Measured:
    """Count the events of each key."""
    items, field = events_of_keys(kind, keys, count, spread), FIELD[kind]
    one_node()
    counters = [ray.remote(_Counter).options(num_cpus=0).remote() for _ in range(actors)]
    ray.get([counter.count.remote(field, []) for counter in counters])  # their processes are there
    begin = time.perf_counter()
    got = sum(len(results) for results in _counted(counters, field, items))
    rate = count / (time.perf_counter() - begin)
    assert got == count
    return {"rate": rate}


def _counted(counters: list[Any], field: Any, items: list[Any]) -> Iterator[list[Any]]:
    lists: list[list[Any]] = [[] for _ in counters]
    calls: collections.deque[Any] = collections.deque()
    for event in items:
        number = hash(event[field]) % len(counters)
        some = lists[number]
        some.append(event)
        if len(some) == BATCH:
            calls.append(counters[number].count.remote(field, some))
            lists[number] = []
            if len(calls) > AHEAD * len(counters):
                yield ray.get(calls.popleft())
    for counter, some in zip(counters, lists, strict=True):
        calls.append(counter.count.remote(field, some))
    for call in calls:
        yield ray.get(call)
