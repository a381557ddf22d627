"""The memory of an open stream: in the client, in the worker, and shared."""

from __future__ import annotations

from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded

STREAMS = 10_000


def measure(plan: Plan) -> Iterator[Row]:
    """Measure the proportional set size of everything, by stream."""
    count = plan.scaled(STREAMS)
    subject = Subject("velo.bench.ours:many_streams", (count, count))
    figures = plan.in_turn({"many": subject})
    measurement = f"memory of each of {count:,} open streams, everywhere"
    yield from bounded(
        figures, "many", measurement=measurement, unit="KiB", figure="KiB", target=16.0
    )
