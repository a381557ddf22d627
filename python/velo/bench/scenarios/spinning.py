"""The gain of spinning, with many cores and few, and its cost for other tasks."""

from __future__ import annotations

from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Plan, Row, Subject, bounded, compare

EVENT = "64 bytes"
PAUSE = 0.005
WITHOUT = "without spinning"
IDLE_LOOP = "in a loop that has nothing else to do"

# Relative to the rate without spinning: spinning need not help, but must not cost noticeably.
RATE_TARGET = 0.9
# Microseconds. A task that always has something to do gives others a turn in between.
TURN_TARGET = 1_000.0
LATE_TARGET = 5_000.0


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

    def compare_without(
        name: str, measurement: str, unit: str, figure: str, target: float | None
    ) -> Iterator[Row]:
        for row in compare(
            figures,
            name,
            name + WITHOUT,
            measurement=measurement,
            unit=unit,
            figure=figure,
            target=target,
        ):
            yield row.named(WITHOUT)

    for number in sorted({1, cores}):
        on = "one core" if number == 1 else f"{number} cores"
        measurement = f"`send` + `recv` while traffic flows, on {on}"
        for figure in ("p50", "p99"):
            yield from compare_without(
                f"trips {number}", f"{measurement}, {figure}", "µs", figure, None
            )
        measurement = f"`feed`, {EVENT}, on {on}"
        yield from compare_without(f"feed {number}", measurement, "events/s", "rate", RATE_TARGET)
    crowd = f"{streams} streams, {workers} workers on {cores} cores"
    yield from compare_without(
        "light", f"`feed`, {EVENT}, {crowd}", "events/s", "rate", RATE_TARGET
    )
    measurement = f"50 µs of Python per event, {crowd}"
    yield from compare_without("heavy", measurement, "events/s", "rate", RATE_TARGET)
    for figure in ("p50", "p99"):
        measurement = f"`send` + `recv` beside a task that computes 50 µs at a time, {figure}"
        yield from compare_without("sibling", measurement, "µs", figure, None)
    measurement = "how long that task waits for its next turn, p99"
    yield from bounded(
        figures,
        "sibling",
        measurement=measurement,
        unit="µs",
        figure="turn_p99",
        target=TURN_TARGET,
    )
    yield from compare_without("sibling", measurement, "µs", "turn_p99", None)
    for use in ("feed", "send and recv"):
        for figure in ("p50", "p99"):
            measurement = (
                f"how late a timer is beside one stream that always does `{use}`, {figure}"
            )
            name, target = f"late {use}", LATE_TARGET
            yield from bounded(
                figures, name, measurement=measurement, unit="µs", figure=figure, target=target
            )
            for row in compare(
                figures, name, "late nothing", measurement=measurement, unit="µs", figure=figure
            ):
                yield row.named(IDLE_LOOP)
