"""The topics of `connect`, and the figure of a run, which is read from its results."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from velo.bench.connect_job import Checked, events
from velo.bench.floors import Measured
from velo.connect.formats import encoder

__all__ = ["CLOCK", "PARTITIONS", "Job", "measured", "read", "source", "topic"]

PARTITIONS = 4
# The broker says when it has stored a result.
CLOCK = {"message.timestamp.type": "LogAppendTime"}
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
        lasts: Whether a peer keeps its states on the disk.

    """

    servers: str
    source: str
    results: str
    group: str
    count: int
    lasts: bool = False


@contextlib.contextmanager
def source(servers: str, count: int) -> Iterator[str]:
    """Make a topic with `count` events, each with its user as key; delete it in the end."""
    from confluent_kafka import Producer

    with topic(servers, "events") as events_topic:
        encode = encoder("json")
        producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "max.in.flight.requests.per.connection": 1,  # see `PRODUCER` of the sink
                "log_level": 0,
            }
        )
        for event in events(count):
            while True:
                try:
                    producer.produce(events_topic, encode(event), event["user"])
                    break
                except BufferError:
                    producer.poll(0.1)
        if left := producer.flush(60):
            raise RuntimeError(f"no broker at {servers} has taken {left} of {count} events")
        yield events_topic


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
    with topic(servers, "results", config=CLOCK) as results:
        began = run(Job(servers, source, results, f"velo-bench-{uuid.uuid4().hex}", count))
        checked = Checked(count, copied=copied)
        ended = read(servers, results, checked)[-1]
    if not copied:
        began = checked.began
    if not began < ended:
        raise RuntimeError(f"the clock of the broker at {servers} is not the one of this machine")
    return {"rate": count / (ended - began)}


def read(
    servers: str,
    topic: str,
    checked: Checked,
    *,
    partitions: int = PARTITIONS,
    patience: float = PATIENCE,
    alive: Callable[[], object] = lambda: None,
) -> list[float]:
    """Read and check all results, and give the times at which the broker has stored them, in order.

    Args:
        servers: The brokers' addresses.
        topic: The topic, whose timestamps are of the broker.
        checked: Checks them.
        partitions: How many the topic has.
        patience: The seconds without a result after which they are missing.
        alive: Called now and then; raises when no more results will come.

    Raises:
        RuntimeError: Results are missing or wrong.

    """
    from confluent_kafka import Consumer, TopicPartition

    consumer: Any = Consumer({"bootstrap.servers": servers, "group.id": "velo-bench"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    times: list[float] = []
    deadline = time.monotonic() + patience
    try:
        while checked.left:
            messages = consumer.consume(10_000, 0.1)
            for message in messages:
                if message.error() is not None:
                    raise RuntimeError(message.error().str())
                checked.take(message.value())
                times.append(message.timestamp()[1] / 1000)
            alive()
            if messages:
                deadline = time.monotonic() + patience
            elif time.monotonic() > deadline:
                raise RuntimeError(f"{checked.left} results are missing")
        # A surplus result would come after the others.
        for message in consumer.consume(1, 0.2):
            if message.error() is None:
                checked.take(message.value())
    finally:
        consumer.close()
    return sorted(times)


@contextlib.contextmanager
def topic(
    servers: str,
    name: str,
    *,
    partitions: int = PARTITIONS,
    config: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Make a topic of a name that nothing else has; delete it in the end."""
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    admin: Any = AdminClient({"bootstrap.servers": servers})
    full = f"velo-bench-{name}-{uuid.uuid4().hex}"
    new = NewTopic(full, partitions, 1, config=dict(config))
    admin.create_topics([new])[full].result(30)
    try:
        yield full
    finally:
        admin.delete_topics([full])[full].result(30)
