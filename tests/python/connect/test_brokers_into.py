"""Functions between topics of one server, which is killed in the middle and started again."""

import asyncio
import json
import queue

import pytest

from velo import stream_fn

mqtt_peer = pytest.importorskip("test_mqtt").MqttPeer
rabbit_peer = pytest.importorskip("test_rabbitmq").RabbitPeer
postgres_peer = pytest.importorskip("postgres_peer").PostgresPeer

HALF = 60


@stream_fn
async def passed_on(events):
    async for event in events:
        yield {"number": event}


class Mqtt(mqtt_peer):
    async def open(self):
        self.numbers = set()
        return self

    async def reopen(self):
        pass  # its client connects again

    async def seen(self):
        while True:
            try:
                self.numbers.add(json.loads(self.received.get_nowait().payload)["number"])
            except queue.Empty:
                return self.numbers

    async def close(self):
        await asyncio.to_thread(super().close)


class Rabbit(rabbit_peer):
    async def open(self):
        self.numbers = set()
        return await super().open()

    async def reopen(self):
        await super().open()

    async def seen(self):
        out = await self.channel.declare_queue(self.out, passive=True)
        while (message := await out.get(fail=False)) is not None:
            self.numbers.add(json.loads(message.body)["number"])
            await message.ack()
        return self.numbers


class Postgres(postgres_peer):
    async def reopen(self):
        await super().close()
        self.connection = await self.connect()

    async def seen(self):
        return {number for (number,) in await self.rows(f"select number from {self.out}")}


KINDS = {"mosquitto": Mqtt, "rabbitmq": Rabbit, "postgres": Postgres}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_killed_server_loses_no_result(kind, mode, request):
    server = request.getfixturevalue(kind)
    peer = await KINDS[kind](server).open()
    await peer.produce([b"%d" % number for number in range(HALF)])
    source = peer.source()
    results = passed_on.options(mode=mode).keyed(source, key=lambda number: number % 7)
    running = asyncio.ensure_future(results.into(peer.sink(), commit_every=0.05))

    async def seen(wanted):
        async with asyncio.timeout(60):
            while not wanted(await peer.seen()):
                assert not running.done(), running
                await asyncio.sleep(0.05)

    await seen(lambda numbers: len(numbers) >= 20)
    await asyncio.to_thread(server.sync)
    server.kill()
    await asyncio.to_thread(server.start)
    await peer.reopen()
    await peer.produce([b"%d" % number for number in range(HALF, 2 * HALF)])
    await seen(lambda numbers: len(numbers) == 2 * HALF)
    source.stop()
    await asyncio.wait_for(running, 60)
    assert await peer.seen() == set(range(2 * HALF))
    await peer.close()
