"""Many open streams: throughput over all of them, and their cost while they are idle."""

from __future__ import annotations

from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded, paired

STREAMS = 10_000
IDLE = 1_000


def measure(plan: Plan) -> Iterator[Row]:
    """Measure streams in turn against one stream, and streams at rest."""
    count = plan.scaled(STREAMS)
    figures = plan.in_turn(
        {
            "many": Subject("velo.bench.ours:many_streams", (count, plan.scaled(400_000))),
            "idle": Subject("velo.bench.ours:idle_streams", (IDLE, 10 * plan.seconds)),
        }
    )
    yield from paired(
        figures,
        "many",
        "the same bursts through one",
        measurement=f"bursts round-robin over {count:,} streams",
        unit="events/s",
        figure="together",
        of="alone",
        target=0.4,
    )
    measurement = f"CPU of {IDLE:,} idle streams"
    # A cost below this cannot be told from a clock tick of the measurement itself.
    yield from bounded(
        figures, "idle", measurement=measurement, unit="% of a core", figure="percent", target=0.5
    )
