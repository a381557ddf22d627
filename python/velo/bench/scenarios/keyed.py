"""Events of many keys, each of which has a state of its own."""

from __future__ import annotations

from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, compare
from velo.bench.peers import choose

EVENT = "64 bytes"
KEYS = 1_000
COUNT = 500_000
FLOOR = "bare generators in a dict, in process"
BATCHED = ", lists of 256 and a dict by hand"
BYTEWAX = "Bytewax, batches of 256, no other process"


def measure(plan: Plan) -> Iterator[Row]:
    """Compare `keyed` with peers that keep a state by key, by themselves or by hand."""
    of = (EVENT, KEYS, plan.scaled(COUNT))
    subjects = {
        "process": Subject("velo.bench.ours:keyed", ("process", *of)),
        "inline": Subject("velo.bench.ours:keyed", ("inline", *of)),
        FLOOR: Subject("velo.bench.floors:generators_by_key", of),
    }
    for name, peer in choose(plan.peers)[0].items():
        if peer.opener is not None:
            where = "velo.bench.peers.use:batched_by_key"
            subjects[name + BATCHED] = Subject(where, (name, EVENT, KEYS, plan.seconds))
        elif name == "Bytewax":
            subjects[BYTEWAX] = Subject("velo.bench.peers.bytewax_flow:by_key", of)
    figures = plan.in_turn(subjects)
    measurement = f"`keyed` in process mode, {KEYS:,} keys, {EVENT}"
    for name in figures:
        if name not in ("process", "inline"):
            target = 1.0 if name == BYTEWAX else None
            yield from compare(
                figures, "process", name, measurement=measurement, unit="events/s", target=target
            )
    measurement = f"`keyed`, inline, {KEYS:,} keys, {EVENT}"
    for name in (FLOOR, BYTEWAX):
        yield from compare(figures, "inline", name, measurement=measurement, unit="events/s")
