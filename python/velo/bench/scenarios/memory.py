"""What an open stream takes, in the client, the worker and what they share."""

from __future__ import annotations

from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded

STREAMS = 10_000


def measure(plan: Plan) -> Iterator[Row]:
    """Measure the proportional set size of everything, by stream."""
    count = plan.scaled(STREAMS)
    subject = Subject("velo.bench.ours:many_streams", (count, count))
    figures = plan.in_turn({"many": subject})
    what = f"memory of each of {count:,} open streams, everywhere"
    yield from bounded(figures, "many", what=what, unit="KiB", figure="KiB", must=16.0)
