"""What a checkpoint costs: rates, a restart, more keys than memory holds, and the disk."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from velo import _core
from velo.bench.connect_broker import NoBroker, broker
from velo.bench.connect_job import KEYS
from velo.bench.connect_kafka import source
from velo.bench.measure import Plan, Row, Subject, bounded, compare, paired
from velo.bench.peers.connectors import LASTING, pythons

COUNT = 1_000_000
FEW, MANY, TOUCHED = 1_000, 1_000_000, 50_000
RESTARTED = 2_000_000
# Keys on the disk, and how many of them are in memory; `--long` has more of both.
STORED, IN_MEMORY = 1_000_000, 10_000
MANY_STORED, MANY_IN_MEMORY = 10_000_000, 100_000
UNLOADING = 200_000
# SQLite's log of changes has its size after some 50 ticks.
TICKS, FIRST_TICKS = 300, 100
KAFKA_COUNT = 100_000
UPLOADED, UPLOADS, MOVED, STATE = 1_000, 50, 100_000, 100
# Seconds: a checkpoint of 10,000,000 keys is made first.
LIMIT = 900.0

# Of the rate without a checkpoint.
FEW_TARGET, MANY_TARGET = 0.9, 0.7
RESTART_TARGET = 5.0  # seconds
SIZE_TARGET = 2.0  # of the size after the first ticks

WITHOUT = "the same without a checkpoint"


def measure(plan: Plan) -> Iterator[Row]:
    """Measure velo with a checkpoint every second, alone and between topics of Kafka."""
    modes = (("inline", None), ("process", min(2, _core.usable_cores())))
    for mode, workers in modes:
        yield from _rates(plan, mode, workers)
        yield from _restart(plan, mode, workers)
        yield from _unloading(plan, mode, workers)
    yield from _size(plan)
    if importlib.util.find_spec("obstore") is None:
        plan.warn("checkpoint: pip install 'velo-stream[objects]' for the rows of an object store")
    else:
        yield from _uploads(plan)
        yield from _moving(plan)
    yield from _kafka(plan, modes)


def _ours(function: str, *arguments: object) -> Subject:
    return Subject(f"velo.bench.ours_checkpoint:{function}", arguments, limit=LIMIT)


def _rates(plan: Plan, mode: str, workers: int | None) -> Iterator[Row]:
    count, many = plan.scaled(COUNT), plan.scaled(MANY)
    touched = plan.scaled(TOUCHED)
    for keys, each, target in ((FEW, FEW, FEW_TARGET), (many, touched, MANY_TARGET)):
        of = (mode, workers, keys, each, count)
        figures = plan.in_turn(
            {"with": _ours("throughput", *of, True), WITHOUT: _ours("throughput", *of, False)}
        )
        some = "" if keys == each else f", {each:,} of them each second"
        measurement = f"a checkpoint every second, {mode}, dicts of {keys:,} keys{some}"
        yield from compare(
            figures, "with", WITHOUT, measurement=measurement, unit="events/s", target=target
        )


def _restart(plan: Plan, mode: str, workers: int | None) -> Iterator[Row]:
    keys = plan.scaled(RESTARTED)
    yield from bounded(
        plan.in_turn({"restart": _ours("restart", mode, workers, keys)}),
        "restart",
        measurement=f"a restart with {keys:,} keys, {mode}, until 1,000 of them had an event",
        unit="s",
        figure="s",
        target=RESTART_TARGET,
    )


def _unloading(plan: Plan, mode: str, workers: int | None) -> Iterator[Row]:
    keys, most, count = (plan.scaled(number) for number in (STORED, IN_MEMORY, UNLOADING))
    sizes = {"unloads": (keys, most)}
    if plan.long:
        sizes["unloads many"] = (MANY_STORED, MANY_IN_MEMORY)
    subjects = {
        name: _ours("unloading", mode, workers, *size, count) for name, size in sizes.items()
    }
    subjects["all"] = _ours("unloading", mode, workers, keys, None, count)
    figures = plan.in_turn(subjects)
    for name, (keys, most) in sizes.items():
        measurement = f"`keys=unload`, {mode}: {most:,} of {keys:,} keys in memory"
        rows = compare(figures, name, "all", measurement=measurement, unit="events/s")
        for row in rows:
            yield row.named(f"all of {plan.scaled(STORED):,} keys in memory")


def _size(plan: Plan) -> Iterator[Row]:
    ticks, first = plan.scaled(TICKS), plan.scaled(FIRST_TICKS)
    yield from paired(
        plan.in_turn({"size": _ours("size", FEW, first, ticks)}),
        "size",
        f"after {first} ticks",
        measurement=f"the folder after {ticks} ticks of {FEW:,} keys",
        unit="KiB",
        figure="KiB",
        of="first KiB",
        target=SIZE_TARGET,
    )


def _uploads(plan: Plan) -> Iterator[Row]:
    touched, length = plan.scaled(UPLOADED), STATE
    figures = plan.in_turn(
        {
            "store": _ours("uploads", touched, length, UPLOADS, True),
            "folder": _ours("uploads", touched, length, UPLOADS, False),
        }
    )
    of = f"{touched:,} keys of {length} bytes"
    rows = compare(
        figures,
        "store",
        "folder",
        measurement=f"a tick of {of} with an object store in a folder",
        unit="ms",
        figure="ms",
    )
    for row in rows:
        yield row.named("a tick without the store")
    yield from bounded(
        figures, "store", measurement=f"the upload of a tick of {of}", unit="KiB", figure="KiB"
    )


def _moving(plan: Plan) -> Iterator[Row]:
    keys, length = plan.scaled(MOVED), STATE
    figures = plan.in_turn(
        {
            "fetched": _ours("moving", keys, length, True),
            "there": _ours("moving", keys, length, False),
        }
    )
    of = f"{keys:,} keys of {length} bytes"
    for name, what in (("fetched", "to an empty cache"), ("there", "to one that has it")):
        yield from bounded(
            figures,
            name,
            measurement=f"moving a checkpoint of {of} {what}",
            unit="s",
            figure="s",
        )
    yield from bounded(
        figures, "fetched", measurement=f"the objects of {of}", unit="KiB", figure="KiB"
    )


def _kafka(plan: Plan, modes: tuple[tuple[str, int | None], ...]) -> Iterator[Row]:
    count = plan.scaled(KAFKA_COUNT)
    try:
        with broker() as servers, source(servers, count) as topic:
            yield from _between_topics(plan, modes, (servers, topic, count))
    except NoBroker as error:
        plan.warn(f"checkpoint: {error}")


def _between_topics(
    plan: Plan, modes: tuple[tuple[str, int | None], ...], at: tuple[str, str, int]
) -> Iterator[Row]:
    subjects: dict[str, Subject] = {}
    for mode, workers in modes:
        where = "velo.bench.ours_connect:kafka"
        subjects[f"{mode}, without"] = Subject(where, (mode, workers, *at))
        subjects[mode] = _ours("kafka", mode, workers, *at)
    others = {}
    for name, python in pythons(plan, LASTING):
        others[name] = f"{name} with {LASTING[name]}, at least once"
        subjects[name] = Subject("velo.bench.peers.connectors:kafka", (name, python, *at, True))
    figures = plan.in_turn(subjects)
    for mode, _ in modes:
        measurement = f"Kafka to Kafka, {KEYS:,} keys, exactly once, {mode}"
        for other, name in {f"{mode}, without": WITHOUT, **others}.items():
            rows = compare(figures, mode, other, measurement=measurement, unit="events/s")
            for row in rows:
                yield row.named(name)
