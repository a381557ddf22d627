"""Kafka, with a real broker: what every connector promises, and beginning, ending, errors."""

import asyncio

import pytest
from conformance import Peer, SinkConformance, SourceConformance

from velo import connect

FAST = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 100}


class KafkaPeer(Peer):
    def __init__(self, server):
        self.server = server
        self.topic = server.topic()
        self.group = f"group-of-{self.topic}"

    async def produce(self, values, key=None, headers=(), **more):
        await asyncio.to_thread(self.server.produce, self.topic, values, key, headers, **more)

    async def written(self, count):
        return [m.value() for m in await asyncio.to_thread(self.server.read, self.topic, count)]

    def source(self, **settings):
        settings = {"group": self.group, "config": FAST, **settings}
        return connect.kafka(self.server.address, self.topic, **settings)

    def sink(self, **settings):
        return connect.kafka(self.server.address, self.topic, config=FAST, **settings)

    def source_of_nothing(self):
        return connect.kafka("127.0.0.1:1", "t", connect_timeout=0.5)


@pytest.fixture
def peer(kafka):
    yield KafkaPeer(kafka)
    kafka.disconnect()


class TestKafka(SourceConformance, SinkConformance):
    pass
