"""From a topic of Kafka through a function by key to another topic."""

from __future__ import annotations

from collections.abc import Iterator

from velo import _core
from velo.bench.connect_broker import NoBroker, broker
from velo.bench.connect_job import KEYS
from velo.bench.connect_kafka import source
from velo.bench.measure import Plan, Row, Subject, compare
from velo.bench.peers.connectors import CONNECTORS, Refused, python_of

COUNT = 100_000

ALONE = "confluent-kafka alone, no function"
BARE = "confluent-kafka and bare generators in a dict"
FLOOR_TARGETS = {ALONE: 0.6, BARE: None}
PEER_TARGETS = {"Faust": 5.0, "Quix Streams": 3.0, "Bytewax": 2.0}


def measure(plan: Plan) -> Iterator[Row]:
    """Compare velo with its floors and its peers, at one broker."""
    count = plan.scaled(COUNT)
    try:
        with broker() as servers, source(servers, count) as topic:
            yield from _rows(plan, (servers, topic, count))
    except NoBroker as error:
        plan.warn(f"connect: {error}")


def _rows(plan: Plan, at: tuple[str, str, int]) -> Iterator[Row]:
    workers = min(2, _core.usable_cores())
    process = f"process mode, {workers} worker{'s' if workers > 1 else ''}"
    subjects = {
        ALONE: Subject("velo.bench.floors_connect:kafka", at),
        BARE: Subject("velo.bench.floors_connect:kafka_with_generators", at),
        "inline": Subject("velo.bench.ours_connect:kafka", ("inline", None, *at)),
        process: Subject("velo.bench.ours_connect:kafka", ("process", workers, *at)),
    }
    for name in CONNECTORS:
        if plan.peers is None or name in plan.peers:
            plan.say(f"an environment for {name}")
            try:
                python = python_of(name)
            except Refused as error:
                plan.warn(f"{name}: {error}")
            else:
                where = "velo.bench.peers.connectors:kafka"
                subjects[name] = Subject(where, (name, python, *at))
    figures = plan.in_turn(subjects)
    for mode in ("inline", process):
        for name, target in {**FLOOR_TARGETS, **PEER_TARGETS}.items():
            measurement = f"Kafka to Kafka, {KEYS:,} keys, {mode}"
            yield from compare(
                figures, mode, name, measurement=measurement, unit="events/s", target=target
            )
