"""A topic of a Kafka broker for one test, and the reading of its sources."""

import asyncio

import pytest
from conformance import Peer, take

from velo import connect
from velo.connect.errors import ConnectError

FAST = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 100}


class KafkaPeer(Peer):
    seeks = True

    def __init__(self, server, partitions=1, **config):
        self.server = server
        self.topic = server.topic(partitions, **config)
        self.group = f"group-of-{self.topic}"

    async def produce(self, values, key=None, headers=(), **more):
        await asyncio.to_thread(self.server.produce, self.topic, values, key, headers, **more)

    async def read(self, count):
        return await asyncio.to_thread(self.server.read, self.topic, count)

    async def written(self, count):
        return [message.value() for message in await self.read(count)]

    def source(self, **settings):
        settings = {"group": self.group, "config": FAST, **settings}
        return connect.kafka(self.server.address, self.topic, **settings)

    def sink(self, **settings):
        settings = {"config": FAST, **settings}
        return connect.kafka(self.server.address, self.topic, **settings)

    def source_of_nothing(self):
        return connect.kafka("127.0.0.1:1", "t", connect_timeout=0.5)


# Named apart from what tests call them: these modules import them.
@pytest.fixture(name="peer")
def one_partition(kafka):
    """A topic with one partition."""
    yield KafkaPeer(kafka)
    kafka.disconnect()


@pytest.fixture(name="wide")
def three_partitions(kafka):
    """A topic with three partitions."""
    yield KafkaPeer(kafka, 3)
    kafka.disconnect()


async def everything(source):
    """All records of a source that ends."""
    found = []
    async with asyncio.timeout(60):
        async for item in source:
            if isinstance(item, list):
                found += item
    await source.close()
    return found


async def failure(source):
    """What ends the source."""
    with pytest.raises(ConnectError) as caught:
        await take(source, 1)
    await source.close()
    return caught.value
