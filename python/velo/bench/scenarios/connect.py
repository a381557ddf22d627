"""From a topic of Kafka, and from a stream of Redis, through a function by key to another one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from velo import _core
from velo.bench import connect_redis
from velo.bench.connect_broker import NoBroker, broker
from velo.bench.connect_job import KEYS
from velo.bench.connect_kafka import source
from velo.bench.measure import Plan, Row, Subject, compare
from velo.bench.peers.connectors import CONNECTORS, pythons
from velo.bench.redis_server import NoRedis, server

COUNT = 100_000

ALONE = "confluent-kafka alone, no function"
BARE = "confluent-kafka and bare generators in a dict"
PIPELINES = "redis-py with pipelines alone, no function"
FLOOR_TARGETS = {ALONE: 0.6, BARE: None}
PEER_TARGETS = {"Faust": 5.0, "Quix Streams": 3.0, "Bytewax": 2.0}


def measure(plan: Plan) -> Iterator[Row]:
    """Compare velo with its floors and its peers, at one broker and at one Redis server."""
    count = plan.scaled(COUNT)
    try:
        with broker() as servers, source(servers, count) as topic:
            yield from _kafka(plan, (servers, topic, count))
    except NoBroker as error:
        plan.warn(f"connect: {error}")
    if importlib.util.find_spec("redis") is None:
        plan.warn("connect: redis is not installed (pip install 'velo-stream[redis]')")
        return
    try:
        with server() as address, connect_redis.source(address, count) as stream:
            yield from _redis(plan, (address, stream, count))
    except NoRedis as error:
        plan.warn(f"connect: {error}")


def _ours(system: str, at: tuple[str, str, int]) -> dict[str, Subject]:
    workers = min(2, _core.usable_cores())
    process = f"process mode, {workers} worker{'s' if workers > 1 else ''}"
    where = f"velo.bench.ours_connect:{system}"
    return {
        "inline": Subject(where, ("inline", None, *at)),
        process: Subject(where, ("process", workers, *at)),
    }


def _kafka(plan: Plan, at: tuple[str, str, int]) -> Iterator[Row]:
    ours = _ours("kafka", at)
    subjects = {
        ALONE: Subject("velo.bench.floors_connect:kafka", at),
        BARE: Subject("velo.bench.floors_connect:kafka_with_generators", at),
        **ours,
    }
    for name, python in pythons(plan, CONNECTORS):
        subjects[name] = Subject("velo.bench.peers.connectors:kafka", (name, python, *at))
    figures = plan.in_turn(subjects)
    for mode in ours:
        for name, target in {**FLOOR_TARGETS, **PEER_TARGETS}.items():
            measurement = f"Kafka to Kafka, {KEYS:,} keys, {mode}"
            yield from compare(
                figures, mode, name, measurement=measurement, unit="events/s", target=target
            )


def _redis(plan: Plan, at: tuple[str, str, int]) -> Iterator[Row]:
    ours = _ours("redis", at)
    figures = plan.in_turn({PIPELINES: Subject("velo.bench.floors_connect:redis", at), **ours})
    for mode in ours:
        measurement = f"Redis to Redis, {KEYS:,} keys, {mode}"
        yield from compare(
            figures, mode, PIPELINES, measurement=measurement, unit="events/s", target=0.7
        )
