"""Functions that compute: how much of the cores they get."""

from __future__ import annotations

from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Plan, Row, Subject, compare, paired
from velo.bench.peers import connected

STREAMS = 8
SEPARATE = "{} processes with no IPC at all"
# What fills all cores feels whatever else the machine does: more rounds, and shorter ones.
OFTEN = 3
# A machine that slows down for a second does so for both.
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
        what = f"50 µs of Python per event, {streams} streams, {number} workers"
        floor = SEPARATE.format(number)
        must = 0.93 if number == 2 else None
        yield from paired(figures, str(number), floor, what=what, unit="events/s", must=must)
        yield from compare(figures, str(number), "inline", what=what, unit="events/s")
    two = min(2, cores)
    for name in peers:
        what = f"50 µs of Python per event, {streams} streams, {two} workers"
        yield from compare(figures, str(two), name, what=what, unit="events/s")
