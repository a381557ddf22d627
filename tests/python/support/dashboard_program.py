"""The program in the pictures of `velo dashboard`: a shop with carts, cards and a ledger.

`METRICS_PORT` is the port of its metrics.
"""

import asyncio
import contextlib
import math
import os
import random
import signal
import time

from prometheus_client import start_http_server

import velo.metrics
from velo import connect, stream_fn
from velo.errors import StreamClosed, WorkerDied

GOODS = ("apples", "bread", "cheese", "dates", "eggs", "figs")
PEOPLE = ("ada", "bob", "cleo", "dan", "eve", "finn", "grace", "hugo")


@stream_fn(mode="process", workers=3)
async def cart(orders):
    """Adds up what one person buys."""
    items, total = {}, 0.0
    async for order in orders:
        items[order["item"]] = items.get(order["item"], 0) + 1
        total = round(total + order["price"], 2)
        yield {"items": len(items), "total": total}


@stream_fn(mode="process", workers=4, recover="replay")
async def spree(payments):
    """Notes a payment that is far above what a card has paid so far."""
    paid = count = 0
    async for amount in payments:
        if count > 3 and amount > 8 * paid / count:
            yield {"amount": amount, "usual": paid / count}
        paid, count = paid + amount, count + 1


@stream_fn(mode="process", workers=3, recover="replay")
async def motion(brightness):
    """Tells how far a picture is from the usual brightness of its camera."""
    usual = 128.0
    async for value in brightness:
        usual += (value - usual) / 50
        yield round(value - usual, 1)


@stream_fn(mode="process", workers=3)
async def pid_of(events):
    """Gives the process of its worker."""
    async for _ in events:
        yield os.getpid()


@stream_fn
async def ledger(records):
    """Sums up bookings, in the event loop of the program."""
    balance = 0
    async for amount in records:
        balance += amount
        yield balance


class Bookings:
    """A source that is always a little behind."""

    name = "bookings"

    def __init__(self):
        self.behind = 0

    async def __aiter__(self):
        for number in range(10**9):
            self.behind = int(900 + 700 * wave(9) + random.random() * 60)
            yield [connect.Record(number % 90, partition="bookings/0", position=number)]
            if number % 20 == 0:
                await asyncio.sleep(0.02)

    async def commit(self, positions):
        """Forget: it is a picture."""

    def lag(self):
        return {"bookings/0": self.behind, "bookings/1": self.behind // 3}


def wave(seconds):
    return math.sin(time.monotonic() / seconds) ** 2


async def shop(name):
    while True:
        with contextlib.suppress(WorkerDied, StreamClosed):
            async with cart.open(key=name) as stream:
                while True:
                    price = random.randrange(100, 900) / 100
                    await stream.send({"item": random.choice(GOODS), "price": price})
                    await stream.recv()
                    await asyncio.sleep(random.expovariate(6))


async def film():
    async with motion.open() as stream:
        while True:
            await stream.send(random.randrange(100, 160))
            await stream.recv()
            await asyncio.sleep(0.03)


async def pay():
    async with spree.keys(max_pending=4000) as keys:

        async def read():
            async for _ in keys:
                pass

        reading = asyncio.create_task(read())
        while not reading.done():
            for _ in range(int(20 + 220 * wave(12) * random.random())):
                card = f"card-{int(random.triangular(0, 2000, 100))}"
                await keys.send(card, random.randrange(5, 60))
            await asyncio.sleep(0.05)


async def keep():
    async for _ in ledger.over(Bookings()):
        pass


async def die():
    """Kill a worker now and then."""
    while True:
        await asyncio.sleep(26)
        with contextlib.suppress(WorkerDied, StreamClosed):
            async with pid_of.open() as stream:
                await stream.send(None)
                os.kill(await stream.recv(), signal.SIGKILL)


async def main():
    start_http_server(int(os.environ["METRICS_PORT"]), "127.0.0.1")
    velo.metrics.register()
    async with asyncio.TaskGroup() as tasks:
        for name in PEOPLE:
            tasks.create_task(shop(name))
        for _ in range(3):
            tasks.create_task(film())
        tasks.create_task(pay())
        tasks.create_task(keep())
        tasks.create_task(die())


asyncio.run(main())
