"""The cost of watching streams."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded, noise_of

EVENT = "64 bytes"
STREAMS = 100
# Spells of each kind in a round, and the seconds that one lasts. Looks at 4 Hz are four times as
# frequent as those of `velo top`.
SPELLS = 40
SPELL = 0.25

# The measurements: events per second, and per second of processor time of client and worker. The
# latter depends little on other processes, and on the processor time of the viewer.
PER = {
    "": ("rate", "alone", "ratio"),
    ", by processor time": ("work", "work_alone", "work_ratio"),
}
RATE_TARGET = 0.99
# Microseconds of the worker: with a look in each second, less than a thousandth of a core.
COST_TARGET = 500.0


def measure(plan: Plan) -> Iterator[Row]:
    """Measure with a viewer and without, in turn and in one process."""
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
            measurement = f"`feed`, {EVENT}, while {often}{per}"
            noise = noise_of([figures[names[2]] for figures in rounds])
            yield Row(
                measurement,
                ours,
                "events/s",
                "without a look",
                alone,
                ratio,
                RATE_TARGET,
                noise=noise,
            )
    measurement = f"processor time of a worker for one look at {STREAMS} streams"
    yield from bounded(
        figures, name, measurement=measurement, unit="µs", figure="cost", target=COST_TARGET
    )
