"""Events of many keys, each of which has a state of its own."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

from velo import _core
from velo.bench.measure import Figures, Plan, Row, Subject, bounded, compare, paired
from velo.bench.peers import choose

KEYS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
FEW, MANY = 1_000, 1_000_000
LEAST = 300_000
TURNS = 4

BARE = "bare generators in a dict, in process"
BYTEWAX = "Bytewax, batches of 256, no other process"
BATCHED = ", lists of 256 and a dict by hand"
PEERS = ("multiprocessing.Pipe", "faster-fifo", "iceoryx2")
INLINE = "velo, inline"

# Of the bare generators, by the number of keys; with one worker, and with two.
INLINE_TARGETS = {FEW: 0.9, MANY: 0.8}
ONE_TARGETS = {FEW: 0.9}
TWO_TARGETS = {FEW: 1.0, MANY: 0.7}
BYTEWAX_TARGETS = {FEW: 4.0, MANY: 4.0}
PEER_TARGET = 1.0
RAY_TARGET = 1.5
SPREAD_TARGET = SLOW_TARGET = 0.9
BURN_TARGET = 0.95
# KiB beyond the bare generator's; microseconds.
MEMORY_TARGETS = {"inline": 0.3, "process": 0.8}
OPENING_TARGET = 2.0


def measure(plan: Plan) -> Iterator[Row]:
    """Compare `keyed` with its floor and its peers, from 10 keys to 1,000,000."""
    for keys in KEYS if not plan.quick else KEYS[:3]:
        yield from _by_number(plan, keys)
    yield from _spread(plan)
    yield from _slow(plan)
    yield from _dicts(plan)
    yield from _burn(plan)
    yield from _memory_and_opening(plan)
    yield from _requests(plan)
    yield from _recovery(plan)
    yield from _on_ray(plan)


def _workers() -> tuple[int, ...]:
    return (1, 2) if _core.usable_cores() > 1 else (1,)


def _process(workers: int) -> str:
    return f"velo, {workers} worker{'s' if workers > 1 else ''}"


def _ours(*arguments: object, function: str = "throughput") -> Subject:
    return Subject(f"velo.bench.ours_keyed:{function}", arguments)


def _by_number(plan: Plan, keys: int) -> Iterator[Row]:
    """Measure one number of keys."""
    of = ("tuples", keys, plan.scaled(max(LEAST, 3 * keys)), "even")
    subjects = {
        BARE: Subject("velo.bench.floors_keyed:throughput_of_generators", of),
        INLINE: _ours("inline", None, *of),
    }
    for workers in _workers():
        subjects[_process(workers)] = _ours("process", workers, *of)
    for name, peer in choose(plan.peers)[0].items():
        if name == "Bytewax":
            subjects[BYTEWAX] = Subject("velo.bench.peers.bytewax_flow:by_key", of)
        elif peer.opener is not None and keys == FEW and name in PEERS:
            where = "velo.bench.peers.use:batched_by_key"
            subjects[name + BATCHED] = Subject(where, (name, *of))
    figures = plan.in_turn(subjects)

    best = _process(_workers()[-1])
    targets = {INLINE: INLINE_TARGETS, _process(1): ONE_TARGETS, _process(2): TWO_TARGETS}
    for one, by_keys in targets.items():
        yield from _against(figures, one, BARE, keys, by_keys.get(keys))
    yield from _against(figures, best, BYTEWAX, keys, BYTEWAX_TARGETS.get(keys))
    for name in figures:
        if name.endswith(BATCHED):
            yield from _against(figures, best, name, keys, PEER_TARGET)


def _against(
    figures: Figures, one: str, other: str, keys: int, target: float | None
) -> Iterator[Row]:
    measurement = f"`keyed`, {one.removeprefix('velo, ')}, {keys:,} keys"
    rows = compare(figures, one, other, measurement=measurement, unit="events/s", target=target)
    for row in rows:
        yield dataclasses.replace(row, series=one, at=float(keys))


def _spread(plan: Plan) -> Iterator[Row]:
    workers, count = _workers()[-1], plan.scaled(LEAST)
    subjects = {
        spread: _ours("process", workers, "tuples", FEW, count, spread)
        for spread in ("Zipf", "even")
    }
    measurement = f"`keyed`, {workers} workers, {FEW:,} keys, Zipf-distributed"
    yield from _ratio(plan, subjects, measurement, "the same, evenly distributed", SPREAD_TARGET)


def _slow(plan: Plan) -> Iterator[Row]:
    for mode, workers in (("inline", None), ("process", _workers()[-1])):
        of = (mode, workers, FEW, plan.scaled(LEAST))
        subjects = {
            "slow": _ours(*of, True, function="slow_keys"),
            "none": _ours(*of, False, function="slow_keys"),
        }
        measurement = f"`keyed`, {mode}, beside one key in 100 that awaits 10 ms an event"
        yield from _ratio(plan, subjects, measurement, "the same, no key is slow", SLOW_TARGET)


def _dicts(plan: Plan) -> Iterator[Row]:
    of = ("four-field dicts", FEW, plan.scaled(LEAST), "even")
    subjects = {
        BARE: Subject("velo.bench.floors_keyed:throughput_of_generators", of),
        "inline": _ours("inline", None, *of),
        "process": _ours("process", _workers()[-1], *of),
    }
    figures = plan.in_turn(subjects)
    for mode in ("inline", "process"):
        measurement = f"`keyed`, {mode}, {FEW:,} keys, four-field dicts"
        yield from compare(figures, mode, BARE, measurement=measurement, unit="events/s")


def _burn(plan: Plan) -> Iterator[Row]:
    workers, count = _workers()[-1], plan.scaled(40_000) // TURNS
    subject = _ours(workers, FEW, count, TURNS, function="burn_in_turn")
    yield from paired(
        plan.in_turn({"burn": subject}),
        "burn",
        f"{workers} processes with no IPC at all",
        measurement=f"`keyed`, {workers} workers, {FEW:,} keys, 50 µs of Python per event",
        unit="events/s",
        target=BURN_TARGET,
    )


def _memory_and_opening(plan: Plan) -> Iterator[Row]:
    keys, workers = plan.scaled(200_000), _workers()[-1]
    subjects = {
        "bare": Subject("velo.bench.floors_keyed:memory_of_generators", (keys,)),
        "inline": _ours("inline", None, keys, function="memory"),
        "process": _ours("process", workers, keys, function="memory"),
    }
    figures = plan.in_turn(subjects)
    for mode in ("inline", "process"):
        yield from _beyond(figures, mode, keys)
    opening = plan.in_turn(
        {
            "bare": Subject("velo.bench.floors_keyed:opening_generators", (keys,)),
            "inline": _ours("inline", None, keys, function="opening"),
            "process": _ours("process", workers, keys, function="opening"),
        }
    )
    for mode in ("bare", "inline", "process"):
        name = "a bare generator" if mode == "bare" else f"a key, {mode}"
        yield from bounded(
            opening,
            mode,
            measurement=f"opening each of {keys:,}: {name}, to its first result",
            unit="µs",
            figure="us",
            target=None if mode == "bare" else OPENING_TARGET,
        )


def _beyond(figures: Figures, mode: str, keys: int) -> Iterator[Row]:
    """Make a row of the memory beyond the bare generator's."""
    if mode not in figures or "bare" not in figures:
        return
    rounds = zip(figures[mode], figures["bare"], strict=True)
    beyond = statistics.median(ours["KiB"] - bare["KiB"] for ours, bare in rounds)
    bare = statistics.median(one["KiB"] for one in figures["bare"])
    yield Row(
        f"memory of each of {keys:,} keys beyond a bare generator's {bare:.2f} KiB, {mode}",
        beyond,
        "KiB",
        target=MEMORY_TARGETS[mode],
    )


def _requests(plan: Plan) -> Iterator[Row]:
    """Measure the live form, by the number of tasks that ask at once."""
    for mode, workers in (("inline", None), ("process", _workers()[-1])):
        for tasks in (1, 1_000):
            each = max(plan.scaled(40_000) // tasks, 2)
            subject = _ours(mode, workers, FEW, tasks, each, function="requests")
            yield from bounded(
                plan.in_turn({"requests": subject}),
                "requests",
                measurement=f"`keys.request`, {mode}, {tasks:,} at a time",
                unit="requests/s",
                figure="rate",
            )


def _recovery(plan: Plan) -> Iterator[Row]:
    """Measure how long keys take to go on after the death of their worker."""
    for keys in (1, FEW, plan.scaled(100_000)):
        yield from paired(
            plan.in_turn({"recovery": _ours(keys, function="recovery")}),
            "recovery",
            "the same, no worker dies",
            measurement=f"a killed worker, to the next result of every key, {keys:,} keys",
            unit="ms",
            figure="ms",
            of="undisturbed",
        )


def _on_ray(plan: Plan) -> Iterator[Row]:
    """Compare `mode="ray"` on one node with actors by hand, one of them or one for each core."""
    if "Ray" not in choose(plan.peers)[0]:
        return
    ours = "velo, ray"
    for kind in ("tuples", "four-field dicts"):
        of = (kind, FEW, plan.scaled(LEAST), "even")
        subjects = {ours: _ours(*of, function="on_ray")}
        for actors in _workers():
            name = f"Ray, {actors} actor{'s' if actors > 1 else ''}{BATCHED}"
            subjects[name] = Subject("velo.bench.peers.ray_by_key:by_hand", (actors, *of))
        figures = plan.in_turn(subjects)
        for name in subjects:
            if name != ours:
                yield from compare(
                    figures,
                    ours,
                    name,
                    measurement=f'`keyed`, `mode="ray"`, one node, {FEW:,} keys, {kind}',
                    unit="events/s",
                    target=RAY_TARGET,
                )


def _ratio(
    plan: Plan, subjects: dict[str, Subject], measurement: str, compared: str, target: float
) -> Iterator[Row]:
    """Compare the first of two subjects with the other one."""
    figures = plan.in_turn(subjects)
    one, other = subjects
    rows = compare(figures, one, other, measurement=measurement, unit="events/s", target=target)
    for row in rows:
        yield row.named(compared)
