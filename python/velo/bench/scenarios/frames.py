"""Video frames: large NumPy arrays in, a number out."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Plan, Row, Subject, compare, paired
from velo.bench.peers import connected

SHAPE = [480, 640, 3]
LARGE = [1000, 2000, 3]
AHEAD = 4
FLOOR = "`mean()` alone, in process"
SEVERAL = "`mean()` alone, of eight frames in turn"
COPY = "memcpy of a frame"
CORNER = "one number of each written and read"
# A machine that slows down for a second does so for both.
TURNS = 8
SIZES = {"900 KB": SHAPE, "6 MB": LARGE}


def measure(plan: Plan) -> Iterator[Row]:
    """Measure frames that are copied, and frames on loan, 4 in flight."""
    if importlib.util.find_spec("numpy") is None:
        plan.warn("frames: NumPy is not installed")
        return
    count = plan.scaled(2_000)
    subjects = {
        "one": _in_turn(1, count),
        COPY: Subject("velo.bench.floors:memcpy", (math.prod(SHAPE), count)),
    }
    if _core.usable_cores() >= 2:
        subjects["two"] = _in_turn(2, count)
    for size, shape in SIZES.items():
        # A quarter of the frames is enough where frames are copied.
        lent, copied = (shape, AHEAD, True, count), (shape, AHEAD, False, count // 4)
        subjects[f"{size} frames on loan"] = Subject("velo.bench.ours:corners", lent)
        subjects[f"{size} frames, copied"] = Subject("velo.bench.ours:corners", copied)
    peers = connected(plan.peers)
    for name in peers:
        arguments = (name, SHAPE, AHEAD, plan.seconds)
        subjects[name] = Subject("velo.bench.peers.use:frames", arguments)
    figures = plan.in_turn(subjects)

    measurement = "900 KB frames, 4 in flight, one worker"
    yield from paired(figures, "one", FLOOR, measurement=measurement, unit="frames/s", target=0.9)
    yield from paired(
        figures, "one", SEVERAL, measurement=measurement, unit="frames/s", of="several"
    )
    for name in (COPY, *peers):
        yield from compare(figures, "one", name, measurement=measurement, unit="frames/s")
    measurement = "900 KB frames, 4 in flight each, two workers"
    yield from paired(figures, "two", FLOOR, measurement=measurement, unit="frames/s")

    for size, target in (("900 KB", None), ("6 MB", 2)):
        one, other = f"{size} frames on loan", f"{size} frames, copied"
        measurement = f"{one}, {CORNER}"
        yield from compare(
            figures, one, other, measurement=measurement, unit="frames/s", target=target
        )
    one, other = "6 MB frames on loan", "900 KB frames on loan"
    yield from compare(figures, one, other, measurement=f"{one}, {CORNER}", unit="frames/s")


def _in_turn(workers: int, count: int) -> Subject:
    arguments = (SHAPE, AHEAD, workers, count // TURNS, TURNS)
    return Subject("velo.bench.ours:frames_in_turn", arguments)
