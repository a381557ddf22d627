"""One job by velo and by its alternatives: start, idle cost, speed, and lines of code."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from velo.bench.alternatives import ALTERNATIVES, INLINE, PROCESS, lines
from velo.bench.connect_broker import NoBroker, broker
from velo.bench.connect_job import KEYS
from velo.bench.connect_kafka import source
from velo.bench.measure import Figures, Plan, Row, Subject, bounded, compare
from velo.bench.peers import environments

COUNT = 30_000
IDLE = 5.0  # seconds
# Seconds: a run gives up by itself before, and stops its program.
LIMIT = 900.0

FIGURES = {
    "start": ("from the start of the program to the first result", "s"),
    "cpu": (f"processor time while idle with {KEYS:,} keys", "% of a core"),
    "memory": (f"memory while idle with {KEYS:,} keys", "MiB"),
    "rate": (f"events by key, {KEYS:,} keys", "events/s"),
    "lines": ("code for the job", "lines"),
}


def measure(plan: Plan) -> Iterator[Row]:
    """Run the job by each of them, at one broker."""
    count = plan.scaled(COUNT)
    try:
        with broker() as servers, source(servers, count) as topic:
            figures = plan.in_turn(_subjects(plan, servers, topic, count))
    except NoBroker as error:
        plan.warn(f"alternatives: {error}")
        return
    yield from _rows(figures)


def _subjects(plan: Plan, servers: str, topic: str, count: int) -> dict[str, Subject]:
    pythons = {INLINE: sys.executable, PROCESS: sys.executable}
    for name, alternative in ALTERNATIVES.items():
        if plan.peers is not None and name not in plan.peers:
            continue
        there = environments.made(alternative.requirements)
        if alternative.heavy and there is None and plan.peers is None:
            command = f"velo bench --scenario alternatives --compare {name}"
            plan.warn(f"{name}, which takes 1 GB and is not installed ({command})")
            continue
        plan.say(f"an environment for {name}")
        try:
            pythons[name] = there or alternative.python()
        except environments.Refused as error:
            plan.warn(f"{name}: {error}")
    idle = IDLE / 20 if plan.quick else IDLE
    return {
        name: Subject(
            "velo.bench.alternatives:measured",
            (name, python, servers, topic, count, idle),
            limit=LIMIT,
        )
        for name, python in pythons.items()
    }


def _rows(figures: Figures) -> Iterator[Row]:
    figures = {
        name: [{**round, "lines": float(lines(name))} for round in rounds]
        for name, rounds in figures.items()
    }
    others = [name for name in figures if name not in (INLINE, PROCESS)]
    for figure, (what, unit) in FIGURES.items():
        for ours in (INLINE, PROCESS):
            measurement = f"{what}, {ours.removeprefix('velo, ')}"
            if ours == PROCESS or not others:
                yield from bounded(figures, ours, measurement=measurement, unit=unit, figure=figure)
                continue
            for name in others:
                for row in compare(
                    figures, ours, name, measurement=measurement, unit=unit, figure=figure
                ):
                    yield row.named(f"{name} {ALTERNATIVES[name].version}".strip())
