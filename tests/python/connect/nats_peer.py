"""A stream of a NATS server for one test, and the reading of its sources."""

import asyncio
import uuid

import nats as client_library
from conformance import Peer

from helpers import HANG
from velo import connect
from velo.connect.model import Assigned


class NatsPeer(Peer):
    """A stream of its own, which has the subjects `NAME.>`."""

    stable = True

    def __init__(self, server, durable="d", stream=None):
        self.server = server
        self.stream = stream or f"s{uuid.uuid4().hex}"
        self.subject = f"{self.stream}.a"
        self.durable = durable
        self.commits = durable is not None
        self.seeks = durable is None
        self.client = None

    async def open(self, **settings):
        self.client = await client_library.connect(self.server.url)
        self.js = self.client.jetstream()
        await self.js.add_stream(name=self.stream, subjects=[f"{self.stream}.>"], **settings)
        return self

    async def close(self):
        await self.client.close()

    async def produce(self, values, key=None, headers=(), subject=None):
        named = dict(headers)
        if key is not None:
            named["Key"] = key
        named = {name: v.decode() if isinstance(v, bytes) else v for name, v in named.items()}
        for value in values:
            await self.client.publish(subject or self.subject, value, headers=named or None)
        await self.js.stream_info(self.stream)  # all are there, as the connection keeps their order

    async def messages(self, count):
        async with asyncio.timeout(HANG):
            while (await self.js.stream_info(self.stream)).state.messages < count:
                await asyncio.sleep(0.01)
        state = (await self.js.stream_info(self.stream)).state
        return [
            await self.js.get_msg(self.stream, sequence)
            for sequence in range(state.first_seq, state.last_seq + 1)
        ]

    async def written(self, count):
        return [message.data for message in await self.messages(count)]

    def source(self, **settings):
        if self.durable:
            settings = {"durable": self.durable, **settings}
        return self.sink(**settings)

    def sink(self, **settings):
        return connect.nats(self.server.url, self.subject, **settings)

    def source_of_nothing(self):
        return connect.nats("nats://127.0.0.1:1", self.subject, connect_timeout=0.3)

    async def info(self):
        return await self.js.consumer_info(self.stream, self.durable)

    async def pending(self):
        return (await self.info()).num_ack_pending


async def read_all(source):
    """The values of a source that ends."""
    async with asyncio.timeout(HANG):
        batches = [batch async for batch in source if not isinstance(batch, Assigned)]
    await source.close()
    return [item.value for batch in batches for item in batch]


async def take_more(iteration, count):
    items = []
    async with asyncio.timeout(HANG):
        while len(items) < count:
            items += await anext(iteration)
    return items


def values_of(items):
    return [item.value for item in items]


async def until(condition):
    async with asyncio.timeout(HANG):
        while not await condition():
            await asyncio.sleep(0.01)
