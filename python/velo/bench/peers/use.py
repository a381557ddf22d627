"""The measurements of peers. Each function returns figures by name."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from velo.bench.floors import Measured, frame_of
from velo.bench.functions import (
    burn_one,
    events,
    mean_of,
    same,
    same_each,
)
from velo.bench.keyed_events import count_batch, events_of_keys
from velo.bench.measure import percentiles
from velo.bench.peers import PEERS, Connection, Work

BATCH = 256
# The most batches in flight: more make no peer faster.
BATCHES_AHEAD = 4


def batched(peer: str, event: str, seconds: float) -> Measured:
    """Collect events in lists of 256, and take the results out of the lists."""
    return _in_lists(peer, same_each, events(event, 1_000), seconds)


def batched_by_key(peer: str, kind: str, keys: int, count: int, spread: str) -> Measured:
    """Count events of many keys: lists of 256, and a dict in the other process."""
    items = events_of_keys(kind, keys, count, spread)
    batches = [items[start : start + BATCH] for start in range(0, count, BATCH)]
    with PEERS[peer].open(count_batch) as connection:
        connection.send([(-1, 0)])
        connection.recv()  # its process is there
        got, begin = 0, time.perf_counter()
        for number, batch in enumerate(batches):
            connection.send(batch)
            if number >= BATCHES_AHEAD:
                got += _taken(connection.recv())
        for _ in batches[:BATCHES_AHEAD]:
            got += _taken(connection.recv())
        rate = count / (time.perf_counter() - begin)
    assert got == count
    return {"rate": rate}


def _taken(results: list[Any]) -> int:
    """Take the results out of a list."""
    taken = 0
    for _ in results:
        taken += 1
    return taken


def _in_lists(peer: str, work: Work, items: list[Any], seconds: float) -> Measured:
    source = itertools.cycle(items)

    def batches() -> Iterator[list[Any]]:
        while True:
            yield list(itertools.islice(source, BATCH))

    def take(results: list[Any]) -> None:
        for _ in results:
            pass

    with PEERS[peer].open(work) as connection:
        return {"rate": BATCH * _rate(connection, batches(), BATCHES_AHEAD, seconds, take)}


def singly(peer: str, event: str, seconds: float) -> Measured:
    """Send events one by one, up to 256 ahead of the results."""
    with PEERS[peer].open(same) as connection:
        return {"rate": _rate(connection, itertools.cycle(events(event, 1_000)), BATCH, seconds)}


def frames(peer: str, shape: list[int], ahead: int, seconds: float) -> Measured:
    """Send frames; numbers come back."""
    with PEERS[peer].open(mean_of) as connection:
        return {"rate": _rate(connection, itertools.repeat(frame_of(shape)), ahead, seconds)}


def round_trips(peer: str, seconds: float) -> Measured:
    """Send one event and wait for it."""
    times: list[float] = []
    event, *_ = events("64 bytes", 1)
    with PEERS[peer].open(same) as connection:
        for _ in range(20):
            connection.send(event)
            connection.recv()
        until = time.perf_counter() + seconds
        while len(times) < 20 or time.perf_counter() < until:
            begin = time.perf_counter()
            connection.send(event)
            connection.recv()
            times.append(time.perf_counter() - begin)
    return percentiles(times)


def first_result(peer: str) -> Measured:
    """Start its process and wait for the first result."""
    begin = time.perf_counter()
    with PEERS[peer].open(same) as connection:
        connection.send(1)
        connection.recv()
        return {"ms": (time.perf_counter() - begin) * 1e3}


def burn_list(numbers: list[int]) -> list[int]:
    """Do the same work as `burn`, for a batch."""
    return [burn_one(number) for number in numbers]


def cpu_bound(peer: str, workers: int, seconds: float) -> Measured:
    """Compute about 50 µs per event in several processes, in lists of 64."""
    batch = list(range(64))
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(PEERS[peer].open(burn_list)) for _ in range(workers)]
        for connection in connections:
            for _ in range(BATCHES_AHEAD):
                connection.send(batch)
        for connection in connections:  # every process is there
            connection.recv()
            connection.send(batch)
        got = 0
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            for connection in connections:
                got += len(connection.recv())
                connection.send(batch)
        took = time.perf_counter() - begin
        for connection in connections:
            for _ in range(BATCHES_AHEAD):
                connection.recv()
    return {"rate": got / took}


def _rate(
    connection: Connection,
    items: Iterator[Any],
    ahead: int,
    seconds: float,
    take: Callable[[Any], None] | None = None,
) -> float:
    for _ in range(ahead):
        connection.send(next(items))
    for _ in range(ahead):  # everything was there once
        connection.recv()
        connection.send(next(items))
    got, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        result = connection.recv()
        if take is not None:
            take(result)
        connection.send(next(items))
        got += 1
    took = time.perf_counter() - begin
    for _ in range(ahead):
        connection.recv()
    return got / took
