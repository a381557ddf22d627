"""Microseconds of one event, there and back."""

from __future__ import annotations

from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded, compare, paired
from velo.bench.peers import choose, predecessor

EVENT = "64 bytes"
PAUSE = 0.005
BLOCKING = "eventfd ping-pong, blocking"
AWAITED = "eventfd ping-pong, asyncio on both sides"


def measure(plan: Plan) -> Iterator[Row]:
    """Measure velo while traffic flows and after a pause, its floors and its peers."""
    hot, cold = plan.scaled(20_000), plan.scaled(400)
    ours = "velo.bench.ours:round_trips"
    subjects = {
        "hot": Subject(ours, ("process", EVENT, hot)),
        "inline": Subject(ours, ("inline", EVENT, hot)),
        "cold": Subject(f"{ours}_after_a_pause", (EVENT, cold, PAUSE)),
        BLOCKING: Subject("velo.bench.floors:ping_pong_blocking", (cold, PAUSE)),
    }
    peers = {}
    for name, peer in choose(plan.peers)[0].items():
        if peer.opener is not None:
            peers[name] = Subject("velo.bench.peers.use:round_trips", (name, plan.seconds))
        elif name == predecessor.NAME:
            peers |= predecessor.subjects(plan, ", in process", "round_trips", plan.seconds)
    figures = plan.in_turn(subjects | peers)

    for figure, hot_target, inline_target in (("p50", 5.0, 4.0), ("p99", 60.0, None)):
        measurement = f"`send` + `recv` while traffic flows, {figure}"
        yield from bounded(
            figures, "hot", measurement=measurement, unit="µs", figure=figure, target=hot_target
        )
        measurement = f"`send` + `recv`, inline, {figure}"
        yield from bounded(
            figures,
            "inline",
            measurement=measurement,
            unit="µs",
            figure=figure,
            target=inline_target,
        )
    measurement = "`send` + `recv` after a pause, p50"
    yield from paired(
        figures, "cold", AWAITED, measurement=measurement, unit="µs", figure="p50", target=1.2
    )
    yield from compare(figures, "cold", BLOCKING, measurement=measurement, unit="µs", figure="p50")
    for name in peers:
        measurement = "`send` + `recv` while traffic flows, p50"
        yield from compare(figures, "hot", name, measurement=measurement, unit="µs", figure="p50")
