"""What spinning gives, with many cores and few, and what it takes from others."""

from __future__ import annotations

from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Plan, Row, Subject, bounded, compare

EVENT = "64 bytes"
PAUSE = 0.005
WITHOUT = "without spinning"
IDLE_LOOP = "in a loop that has nothing else to do"

# Of what goes without spinning: it may help nothing, but must not cost what one would notice.
RATE_MUST = 0.9
# Microseconds. A task that always has something to do gives others a turn in between.
TURN_MUST = 1_000.0
LATE_MUST = 5_000.0


def measure(plan: Plan) -> Iterator[Row]:
    """Measure with spinning and without, in turn."""
    cores = _core.usable_cores()
    workers = 2 * cores
    trips, fed, computed = plan.scaled(5_000), plan.scaled(400_000), plan.scaled(20_000)
    here = "velo.bench.spinning:"
    streams = 2 * workers
    both = {
        "sibling": Subject(f"{here}beside_a_sibling", (EVENT, trips)),
        "light": Subject(f"{here}many_workers", (workers, EVENT, fed)),
        "heavy": Subject("velo.bench.ours:cpu_bound", ("process", workers, streams, computed)),
    }
    for number in sorted({1, cores}):
        pinned = f"{here}pinned"
        both[f"trips {number}"] = Subject(pinned, (number, "round_trips", "process", EVENT, trips))
        both[f"feed {number}"] = Subject(pinned, (number, "feed", "process", EVENT, fed))
    subjects = {}
    for name, subject in both.items():
        subjects[name] = subject
        subjects[name + WITHOUT] = Subject(
            subject.where, subject.arguments, environment={"VELO_SPIN": "0"}
        )
    for use in ("feed", "send and recv", "nothing"):
        subjects[f"late {use}"] = Subject(f"{here}lateness", (use, EVENT, plan.seconds))
    figures = plan.in_turn(subjects)

    def beside(name: str, what: str, unit: str, figure: str, must: float | None) -> Iterator[Row]:
        for row in compare(
            figures, name, name + WITHOUT, what=what, unit=unit, figure=figure, must=must
        ):
            yield row.named(WITHOUT)

    for number in sorted({1, cores}):
        on = "one core" if number == 1 else f"{number} cores"
        what = f"`send` + `recv` while traffic flows, on {on}"
        for figure in ("p50", "p99"):
            yield from beside(f"trips {number}", f"{what}, {figure}", "µs", figure, None)
        what = f"`feed`, {EVENT}, on {on}"
        yield from beside(f"feed {number}", what, "events/s", "rate", RATE_MUST)
    crowd = f"{streams} streams, {workers} workers on {cores} cores"
    yield from beside("light", f"`feed`, {EVENT}, {crowd}", "events/s", "rate", RATE_MUST)
    what = f"50 µs of Python per event, {crowd}"
    yield from beside("heavy", what, "events/s", "rate", RATE_MUST)
    for figure in ("p50", "p99"):
        what = f"`send` + `recv` beside a task that computes 50 µs at a time, {figure}"
        yield from beside("sibling", what, "µs", figure, None)
    what = "how long that task waits for its next turn, p99"
    yield from bounded(figures, "sibling", what=what, unit="µs", figure="turn_p99", must=TURN_MUST)
    yield from beside("sibling", what, "µs", "turn_p99", None)
    for use in ("feed", "send and recv"):
        for figure in ("p50", "p99"):
            what = f"how late a timer is beside one stream that always does `{use}`, {figure}"
            name, must = f"late {use}", LATE_MUST
            yield from bounded(figures, name, what=what, unit="µs", figure=figure, must=must)
            for row in compare(figures, name, "late nothing", what=what, unit="µs", figure=figure):
                yield row.named(IDLE_LOOP)
