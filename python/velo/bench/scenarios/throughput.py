"""Events per second through one function in another process."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Iterator

from velo.bench.functions import EVENTS
from velo.bench.measure import Figures, Plan, Row, Subject, compare
from velo.bench.peers import choose, predecessor

FLOOR = "the bare async generator"
QUEUES = "asyncio.Queue pair, in process"
BATCHED = ", lists of 256 by hand"
SINGLY = ", one by one"
COUNT = 2_000_000
# The factor by which there are more rounds, each of them shorter by it.
OFTEN = 4

# Of the floor; of the best peer that batches by hand; of the best one that is used one by one.
TARGETS = {"64 bytes": (0.7, 0.8, 10.0), "a four-field dict": (0.25, 1.0, 10.0)}
INLINE_TARGET = 0.9
METRICS_TARGET = 0.97


def measure(plan: Plan) -> Iterator[Row]:
    """Measure velo, its floors and its peers with each kind of event."""
    for event in EVENTS:
        yield from _rows(event, plan.in_turn(_subjects(plan, event)))
        yield from _metrics(plan, event)


def _subjects(plan: Plan, event: str) -> dict[str, Subject]:
    count = plan.scaled(COUNT)
    subjects = {
        FLOOR: Subject("velo.bench.floors:bare_generator", (event, count)),
        "feed": Subject("velo.bench.ours:feed", ("process", event, count)),
        "inline feed": Subject("velo.bench.ours:feed", ("inline", event, count)),
        "inline run": Subject("velo.bench.ours:run", ("inline", event, count)),
        QUEUES: Subject("velo.bench.floors:queue_pair", (event, count // 20)),
    }
    for name, peer in choose(plan.peers)[0].items():
        if peer.opener is not None:
            for suffix, function in ((BATCHED, "batched"), (SINGLY, "singly")):
                where = f"velo.bench.peers.use:{function}"
                subjects[name + suffix] = Subject(where, (name, event, plan.seconds))
        elif name == "Bytewax":
            where = "velo.bench.peers.bytewax_flow:throughput"
            subjects["Bytewax, batches of 256, no other process"] = Subject(
                where, (event, count // 4)
            )
        elif name == predecessor.NAME:
            use = ", in process" + SINGLY
            subjects |= predecessor.subjects(plan, use, "throughput", event, plan.seconds)
    return subjects


def _rows(event: str, figures: Figures) -> Iterator[Row]:
    row = functools.partial(compare, figures, unit="events/s")
    floor_target, batched_target, singly_target = TARGETS[event]
    measurement = f"`feed` in process mode, {event}"
    yield from row("feed", FLOOR, measurement=measurement, target=floor_target)
    batched, singly = _ranked(figures, BATCHED), _ranked(figures, SINGLY)
    for name in batched:
        yield from row("feed", name, measurement=measurement, target=batched_target)
    for name in singly:
        yield from row("feed", name, measurement=measurement, target=singly_target)
    for name in figures:
        if name.startswith(("Bytewax", QUEUES)):
            yield from row("feed", name, measurement=measurement)
    yield from row("inline feed", FLOOR, measurement=f"`feed`, inline, {event}")
    yield from row("inline run", FLOOR, measurement=f"`run`, inline, {event}", target=INLINE_TARGET)


def _metrics(plan: Plan, event: str) -> Iterator[Row]:
    """Measure the cost of metrics, which is less than the noise of one round, hence more rounds."""
    without = "feed without metrics"
    feed = Subject("velo.bench.ours:feed", ("process", event, plan.scaled(COUNT // OFTEN)))
    off = dataclasses.replace(feed, environment={"VELO_METRICS": "0"})
    figures = plan.in_turn({"feed": feed, without: off}, often=OFTEN)
    measurement = f"`feed` in process mode with metrics, {event}"
    yield from compare(
        figures, "feed", without, measurement=measurement, unit="events/s", target=METRICS_TARGET
    )


def _ranked(figures: Figures, suffix: str) -> list[str]:
    """Return the peers that were used so, the best first."""

    def rate(name: str) -> float:
        return statistics.median(round["rate"] for round in figures[name])

    return sorted((name for name in figures if name.endswith(suffix)), key=rate, reverse=True)
