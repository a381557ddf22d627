"""Functions that compute: their share of the cores."""

from __future__ import annotations

from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Plan, Row, Subject, compare, paired
from velo.bench.peers import connected

STREAMS = 8
SEPARATE = "{} processes with no IPC at all"
# A subject on all cores feels every other process of the machine: more rounds, and shorter ones.
OFTEN = 3
# A machine that slows down for a second then slows both.
TURNS = 4


def measure(plan: Plan) -> Iterator[Row]:
    """Measure about 50 µs of Python per event over 8 streams, by the number of workers."""
    count = plan.scaled(100_000 // OFTEN)
    cores = _core.usable_cores()
    workers = sorted({1, 2, 4, 8, 16, 32, cores})
    workers = [number for number in workers if number <= cores]
    streams = max(STREAMS, 2 * cores)
    subjects = {"inline": Subject("velo.bench.ours:cpu_bound", ("inline", None, streams, count))}
    for number in workers:
        arguments = (number, streams, count // TURNS // streams * streams, TURNS)
        subjects[str(number)] = Subject("velo.bench.ours:cpu_bound_in_turn", arguments)
    peers = connected(plan.peers)
    for name in peers:
        subjects[name] = Subject(
            "velo.bench.peers.use:cpu_bound", (name, min(2, cores), plan.seconds)
        )
    figures = plan.in_turn(subjects, often=OFTEN)

    for number in workers:
        measurement = f"50 µs of Python per event, {streams} streams, {number} workers"
        floor = SEPARATE.format(number)
        target = 0.93 if number == 2 else None
        yield from paired(
            figures, str(number), floor, measurement=measurement, unit="events/s", target=target
        )
        yield from compare(figures, str(number), "inline", measurement=measurement, unit="events/s")
    two = min(2, cores)
    for name in peers:
        measurement = f"50 µs of Python per event, {streams} streams, {two} workers"
        yield from compare(figures, str(two), name, measurement=measurement, unit="events/s")
