"""Many open streams: what goes through all of them, and what they cost when nothing does."""

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
        what=f"bursts round-robin over {count:,} streams",
        unit="events/s",
        figure="together",
        of="alone",
        must=0.4,
    )
    what = f"CPU of {IDLE:,} idle streams"
    # What cannot be told from a clock tick of the measurement itself.
    yield from bounded(figures, "idle", what=what, unit="% of a core", figure="percent", must=0.5)
