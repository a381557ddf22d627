"""Video frames: large NumPy arrays in, a number out."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Plan, Row, Subject, compare
from velo.bench.peers import connected

SHAPE = [480, 640, 3]
AHEAD = 4
FLOOR = "`mean()` alone, in process"
COPY = "memcpy of a frame"


def measure(plan: Plan) -> Iterator[Row]:
    """Measure 900 KB frames, 4 in flight."""
    if importlib.util.find_spec("numpy") is None:
        plan.warn("frames: NumPy is not installed")
        return
    count = plan.scaled(2_000)
    subjects = {
        FLOOR: Subject("velo.bench.floors:mean_alone", (SHAPE, count)),
        "one": Subject("velo.bench.ours:frames", (SHAPE, AHEAD, 1, count)),
        COPY: Subject("velo.bench.floors:memcpy", (math.prod(SHAPE), count)),
    }
    if _core.usable_cores() >= 2:
        subjects["two"] = Subject("velo.bench.ours:frames", (SHAPE, AHEAD, 2, count))
    peers = connected(plan.peers)
    for name in peers:
        arguments = (name, SHAPE, AHEAD, plan.seconds)
        subjects[name] = Subject("velo.bench.peers.use:frames", arguments)
    figures = plan.in_turn(subjects)

    what = "900 KB frames, 4 in flight, one worker"
    yield from compare(figures, "one", FLOOR, what=what, unit="frames/s", must=0.9)
    for name in (COPY, *peers):
        yield from compare(figures, "one", name, what=what, unit="frames/s")
    what = "900 KB frames, 4 in flight each, two workers"
    yield from compare(figures, "two", FLOOR, what=what, unit="frames/s")
