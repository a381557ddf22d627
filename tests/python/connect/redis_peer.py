"""A stream of a Redis server for one test, and the reading of its sources."""

import asyncio
import uuid

from conformance import Peer

from helpers import HANG
from velo import connect
from velo.connect.model import Assigned

# The clients of the peers of a test, which are closed at its end.
CLIENTS = []


def close_clients():
    """Closes the clients of all peers, at the end of a test."""
    while CLIENTS:
        CLIENTS.pop().close()


class RedisPeer(Peer):
    """A stream of its own on the server of the session; by id without a group."""

    stable = True

    def __init__(self, server, group="g"):
        self.server = server
        self.stream = f"s-{uuid.uuid4().hex}"
        self.group = group
        self.commits = group is not None
        self.seeks = group is None
        self.client = server.client()
        CLIENTS.append(self.client)

    async def produce(self, values, key=None, headers=()):
        fields = {"key": key} if key else {}
        fields |= {f"h:{name}": value for name, value in headers}
        for value in values:
            self.client.xadd(self.stream, {"value": value, **fields})

    async def written(self, count):
        async with asyncio.timeout(HANG):
            while self.client.xlen(self.stream) < count:
                await asyncio.sleep(0.01)
        return [fields[b"value"] for _, fields in self.client.xrange(self.stream)]

    def source(self, **settings):
        if self.group:
            settings = {"group": self.group, "consumer": "c", **settings}
        return self.sink(**settings)

    def sink(self, **settings):
        return connect.redis(self.server.url, self.stream, **settings)

    def source_of_nothing(self):
        return connect.redis("redis://127.0.0.1:1", self.stream, connect_timeout=0.3)

    def pending(self):
        return self.client.xpending(self.stream, self.group)["pending"]


async def read_all(source):
    """The values of a source that ends."""
    async with asyncio.timeout(HANG):
        batches = [batch async for batch in source if not isinstance(batch, Assigned)]
    await source.close()
    return [item.value for batch in batches for item in batch]


async def take_more(iteration, count):
    async with asyncio.timeout(HANG):
        while count > 0:
            count -= len(await anext(iteration))
