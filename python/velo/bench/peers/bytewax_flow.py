"""Bytewax: `stateful_map` in this very process; there is no other one."""

from __future__ import annotations

import time
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main

from velo.bench.functions import events

BATCH = 256


def throughput(event: str, count: int) -> dict[str, float]:
    """Map so many events of one key."""
    results: list[Any] = []
    flow = Dataflow("bench")
    source = op.input(
        "in",
        flow,
        TestingSource([("key", item) for item in events(event, count)], batch_size=BATCH),
    )

    def step(state: int | None, value: Any) -> tuple[int, Any]:
        return (state or 0) + 1, value

    op.output("out", op.stateful_map("map", source, step), TestingSink(results))
    begin = time.perf_counter()
    run_main(flow)  # type: ignore[no-untyped-call,unused-ignore]
    rate = count / (time.perf_counter() - begin)
    assert len(results) == count
    return {"rate": rate}
