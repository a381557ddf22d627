"""The topics of `connect`, and the figure of a run, which is read from its results."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from velo.bench.connect_job import Checked, events
from velo.bench.floors import Measured
from velo.connect.formats import encoder

__all__ = ["Job", "measured", "source"]

PARTITIONS = 4
PATIENCE = 30.0  # seconds without a result


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: from a topic to another one.

    Attributes:
        servers: The brokers' addresses.
        source: The topic of the events.
        results: The topic of the results, which is empty.
        group: The consumer group, which nothing else uses.
        count: The number of events.

    """

    servers: str
    source: str
    results: str
    group: str
    count: int


@contextlib.contextmanager
def source(servers: str, count: int) -> Iterator[str]:
    """Make a topic with `count` events, each with its user as key; delete it in the end."""
    from confluent_kafka import Producer

    with _topic(servers, "events") as topic:
        encode = encoder("json")
        producer = Producer(
            {"bootstrap.servers": servers, "enable.idempotence": True, "log_level": 0}
        )
        for event in events(count):
            while True:
                try:
                    producer.produce(topic, encode(event), event["user"])
                    break
                except BufferError:
                    producer.poll(0.1)
        if left := producer.flush(60):
            raise RuntimeError(f"no broker at {servers} has taken {left} of {count} events")
        yield topic


def measured(
    servers: str, source: str, count: int, run: Callable[[Job], Any], *, copied: bool = False
) -> Measured:
    """Run a job, and give its rate.

    The time begins when the function has its first event, which the first result of each user
    says, and ends when the broker stores the last result: neither the start of a subject nor its
    end counts. Every result is checked. With `copied`, results are the events themselves, and `run`
    gives the time at which it had the first one.

    Raises:
        RuntimeError: Results are missing or wrong.

    """
    with _topic(servers, "results", **{"message.timestamp.type": "LogAppendTime"}) as results:
        began = run(Job(servers, source, results, f"velo-bench-{uuid.uuid4().hex}", count))
        checked = Checked(count, copied=copied)
        ended = _end(servers, results, checked)
    if not copied:
        began = checked.began
    if not began < ended:
        raise RuntimeError(f"the clock of the broker at {servers} is not the one of this machine")
    return {"rate": count / (ended - began)}


def _end(servers: str, topic: str, checked: Checked) -> float:
    """Read all results, and give the time at which the broker has stored the last one."""
    from confluent_kafka import Consumer, TopicPartition

    consumer: Any = Consumer({"bootstrap.servers": servers, "group.id": "velo-bench"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    last = 0.0
    deadline = time.monotonic() + PATIENCE
    try:
        while checked.left:
            messages = consumer.consume(10_000, 0.1)
            for message in messages:
                if message.error() is not None:
                    raise RuntimeError(message.error().str())
                checked.take(message.value())
                last = max(last, message.timestamp()[1] / 1000)
            if messages:
                deadline = time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise RuntimeError(f"{checked.left} results are missing")
        # A surplus result would come after the others.
        for message in consumer.consume(1, 0.2):
            if message.error() is None:
                checked.take(message.value())
    finally:
        consumer.close()
    return last


@contextlib.contextmanager
def _topic(servers: str, name: str, **config: str) -> Iterator[str]:
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    admin: Any = AdminClient({"bootstrap.servers": servers})
    topic = f"velo-bench-{name}-{uuid.uuid4().hex}"
    new = NewTopic(topic, PARTITIONS, 1, config=config)
    admin.create_topics([new])[topic].result(30)
    try:
        yield topic
    finally:
        admin.delete_topics([topic])[topic].result(30)
