"""Bytewax: `stateful_map` in this process, without a worker process."""

from __future__ import annotations

import time
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main

from velo.bench.functions import events
from velo.bench.keyed_events import events_of_keys

BATCH = 256


def throughput(event: str, count: int) -> dict[str, float]:
    """Map `count` events of one key."""
    return _run([("key", item) for item in events(event, count)])


def by_key(kind: str, keys: int, count: int, spread: str) -> dict[str, float]:
    """Map `count` events of many keys, which have to be strings."""
    items = events_of_keys(kind, keys, count, spread)
    return _run([(f"{key}", value) for key, value in items])


def _run(items: list[tuple[str, Any]]) -> dict[str, float]:
    results: list[Any] = []
    flow = Dataflow("bench")
    source = op.input("in", flow, TestingSource(items, batch_size=BATCH))

    def step(state: int | None, value: Any) -> tuple[int, Any]:
        return (state or 0) + 1, value

    op.output("out", op.stateful_map("map", source, step), TestingSink(results))
    begin = time.perf_counter()
    run_main(flow)  # type: ignore[no-untyped-call,unused-ignore]
    rate = len(items) / (time.perf_counter() - begin)
    assert len(results) == len(items)
    return {"rate": rate}
