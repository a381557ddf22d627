"""What it takes from streams to be watched."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded

EVENT = "64 bytes"
STREAMS = 100
# Spells of each kind in a round, and how many seconds one lasts: a look at 4 Hz is four times what
# `velo top` does.
SPELLS = 40
SPELL = 0.25

# What is measured, per second and per second of what client and worker compute: the latter shows
# little of what else goes on, and of the processor time of those who look.
PER = {
    "": ("rate", "alone", "ratio"),
    ", by processor time": ("work", "work_alone", "work_ratio"),
}
RATE_MUST = 0.99
# Microseconds of the worker: with a look in each second, less than a thousandth of a core.
COST_MUST = 500.0


def measure(plan: Plan) -> Iterator[Row]:
    """Measure with somebody who looks and without, in turn and in one process."""
    spells, spell = (2, 0.05) if plan.quick else (SPELLS, SPELL)
    name = "watching"
    figures = plan.in_turn(
        {name: Subject("velo.bench.watching:watched", (EVENT, STREAMS, spells, spell))}
    )
    often = f"all of {STREAMS} streams are looked at every {spell:g} s"
    for rounds in figures.values():
        for per, names in PER.items():
            ours, alone, ratio = (
                statistics.median(figures[name] for figures in rounds) for name in names
            )
            what = f"`feed`, {EVENT}, while {often}{per}"
            yield Row(what, ours, "events/s", "nobody looks", alone, ratio, RATE_MUST)
    what = f"what a look at {STREAMS} streams takes from their worker"
    yield from bounded(figures, name, what=what, unit="µs", figure="cost", must=COST_MUST)
