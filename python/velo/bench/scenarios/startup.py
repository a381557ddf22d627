"""The time to the first result."""

from __future__ import annotations

from collections.abc import Iterator

from velo.bench.measure import Plan, Row, Subject, bounded, compare, paired
from velo.bench.peers import connected

PAUSE = 0.005
FLOOR = "eventfd ping-pong, asyncio on both sides"


def measure(plan: Plan) -> Iterator[Row]:
    """Measure a warm worker, a new one, a fresh process and the import."""
    count = plan.scaled(400)
    subjects = {
        "warm": Subject("velo.bench.ours:open_to_first_result", (count, PAUSE)),
        "new": Subject("velo.bench.ours:new_worker"),
        "fresh": Subject("velo.bench.ours:fresh_process"),
        "import": Subject("velo.bench.ours:import_velo"),
    }
    peers = connected(plan.peers)
    for name in peers:
        subjects[name] = Subject("velo.bench.peers.use:first_result", (name,))
    figures = plan.in_turn(subjects)

    measurement = "open to first result, warm worker, p50"
    yield from paired(
        figures, "warm", FLOOR, measurement=measurement, unit="µs", figure="p50", target=2.0
    )
    for name, measurement, target in (
        ("new", "a new worker, to its first result", 10.0),
        ("fresh", "a fresh process, to its first result, `import velo` included", 150.0),
        ("import", "`import velo`, beyond `python -c pass`", 30.0),
    ):
        yield from bounded(
            figures, name, measurement=measurement, unit="ms", figure="ms", target=target
        )
    for name in peers:
        measurement = "a new worker, to its first result"
        yield from compare(figures, "new", name, measurement=measurement, unit="ms", figure="ms")
