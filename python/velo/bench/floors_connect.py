"""The floors of `connect`: the client libraries alone, and with bare generators by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from velo.bench import connect_redis
from velo.bench.connect_job import spending
from velo.bench.connect_kafka import Job, measured
from velo.bench.connect_redis import StreamJob
from velo.bench.floors import Measured
from velo.connect.formats import decoder, encoder

__all__ = ["kafka", "kafka_with_generators", "redis"]

BATCH = 500

_bare: Any = spending.__wrapped__  # type: ignore[attr-defined]


def kafka(servers: str, source: str, count: int) -> Measured:
    """Copy keys and values from topic to topic, without a look at them."""

    def run(job: Job) -> float:
        began = 0.0
        producer = _Producer(job)
        for messages in _batches(job):
            if messages and not began:
                began = time.time()
            for message in messages:
                producer.put(message.value(), message.key())
            producer.poll()
        producer.flush()
        return began

    return measured(servers, source, count, run, copied=True)


def kafka_with_generators(servers: str, source: str, count: int) -> Measured:
    """Run a generator for each user, in a dict."""
    decode, encode = decoder("json"), encoder("json")

    async def run(job: Job) -> None:
        running: dict[str, tuple[list[Any], AsyncIterator[Any]]] = {}
        producer = _Producer(job)
        for messages in _batches(job):
            for message in messages:
                event = decode(message.value())
                user = event["user"]
                found = running.get(user)
                if found is None:
                    queue: list[Any] = []
                    found = running[user] = queue, _bare(_source(queue))
                found[0].append(event)
                producer.put(encode(await anext(found[1])), user)
            producer.poll()
        producer.flush()

    return measured(servers, source, count, lambda job: asyncio.run(run(job)))


def redis(server: str, source: str, count: int) -> Measured:
    """Copy keys and values from stream to stream in pipelines, without a look at them."""

    def run(job: StreamJob) -> float:
        began, left = 0.0, job.count
        with connect_redis.client_of(job.server) as client:
            client.xgroup_create(job.source, job.group, "0")
            while left:
                streams = {job.source: ">"}
                ((_, entries),) = client.xreadgroup(job.group, "floor", streams, count=BATCH)
                began = began or time.time()
                pipe = client.pipeline(transaction=False)
                for _, fields in entries:
                    pipe.xadd(job.results, fields)
                pipe.xack(job.source, job.group, *(entry_id for entry_id, _ in entries))
                pipe.execute()
                left -= len(entries)
        return began

    return connect_redis.measured(server, source, count, run, copied=True)


async def _source(queue: list[Any]) -> AsyncIterator[Any]:
    while True:
        yield queue.pop()


def _batches(job: Job) -> Iterator[list[Any]]:
    """Read all events in a group; the client commits every five seconds, whatever is handled."""
    from confluent_kafka import Consumer

    consumer: Any = Consumer(
        {
            "bootstrap.servers": job.servers,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 20,  # as velo's source has it
        }
    )
    consumer.subscribe([job.source])
    left = job.count
    try:
        while left:
            messages = consumer.consume(BATCH, 0.1)
            for message in messages:
                if message.error() is not None:
                    raise RuntimeError(message.error().str())
            left -= len(messages)
            yield messages
    finally:
        consumer.close()


class _Producer:
    """An idempotent producer, as velo's is."""

    def __init__(self, job: Job) -> None:
        from confluent_kafka import Producer

        from velo.connect._kafka.config import PRODUCER

        self._topic = job.results
        self._producer: Any = Producer({"bootstrap.servers": job.servers, **PRODUCER})
        self.flush = self._producer.flush

    def put(self, value: bytes, key: bytes | str) -> None:
        """Queue a result; wait while the queue is full."""
        while True:
            try:
                self._producer.produce(self._topic, value, key)
                return
            except BufferError:
                self._producer.poll(0.1)

    def poll(self) -> None:
        """Let the client work."""
        self._producer.poll(0)
