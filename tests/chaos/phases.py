"""What a client is doing when something dies.

Each phase is a pair: `prepare` opens what has to be open before, `body` is what the fault hits.
All of it says what came out, stream by stream, so that it can be compared with what should have.
"""

import abc
import asyncio
import contextlib
import dataclasses
import time

from velo.errors import PoolError

__all__ = ["PHASES", "Stream", "expected"]


@dataclasses.dataclass
class Stream:
    """One stream of a run: what goes in, what came out, and when."""

    events: list
    results: list = dataclasses.field(default_factory=list)
    times: list = dataclasses.field(default_factory=list)

    def came(self, result):
        """Note a result."""
        self.results.append(result)
        self.times.append(time.monotonic())


async def expected(fn, stream):
    """What an undisturbed run of the same events gives."""
    return await fn.options(mode="inline").run(stream.events)


async def opened(fn):
    """Open a stream; a supervisor that is being replaced is asked again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await fn.open()
        except PoolError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.005)


async def through(live, stream, events):
    """Send events, and note what comes of them."""
    async for result in live.feed(events):
        stream.came(result)


async def finish(live, stream):
    """End the input and take the rest."""
    await live.end()
    async for result in live:
        stream.came(result)


def small(rng, count):
    return [(number, rng.randbytes(rng.randrange(8, 200))) for number in range(count)]


def frames(rng, count):
    one = rng.randbytes(2_000_000)
    return [(number, one[number:]) for number in range(count)]


def doubling(rng, count):
    one = rng.randbytes(1 << 20)
    return [(number, one[: 64 << (number % 14)]) for number in range(count)]


class Phase(abc.ABC):
    """A workload: how many streams, of which events, and what is done with them."""

    def __init__(self, name, streams, events, seconds):
        self.name = name
        self.seconds = seconds
        self._streams = streams
        self._events = events

    def streams(self, rng):
        """The streams of one run."""
        return [Stream(self._events(rng)) for _ in range(self._streams)]

    @abc.abstractmethod
    async def run(self, fn, streams, began):
        """Do it. `began` is called when the fault may come."""


class Flowing(Phase):
    """All streams are open; the fault comes while events flow."""

    async def run(self, fn, streams, began):
        live = [await opened(fn) for _ in streams]
        async with asyncio.TaskGroup() as group:
            began()
            for each, stream in zip(live, streams, strict=True):
                group.create_task(self._one(each, stream))

    async def _one(self, live, stream):
        async with live:
            await through(live, stream, stream.events)
            await finish(live, stream)


class Idle(Flowing):
    """Streams have worked and wait; the fault comes while nothing happens."""

    async def run(self, fn, streams, began):
        live = [await opened(fn) for _ in streams]
        half = len(streams[0].events) // 2
        for each, stream in zip(live, streams, strict=True):
            await through(each, stream, stream.events[:half])
        injected = began()
        await injected
        for each, stream in zip(live, streams, strict=True):
            async with each:
                await through(each, stream, stream.events[half:])
                await finish(each, stream)


class Opening(Flowing):
    """The fault comes while streams are being opened."""

    async def run(self, fn, streams, began):
        async def one(stream):
            live = await opened(fn)
            await self._one(live, stream)

        began()
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(one(stream))
                await asyncio.sleep(0)


class Draining(Flowing):
    """All is sent and the input has ended; the fault comes while results are taken."""

    async def run(self, fn, streams, began):
        fn = fn.options(buffer=len(streams[0].events))
        live = [await opened(fn) for _ in streams]
        for each, stream in zip(live, streams, strict=True):
            await each.send_batch(stream.events)
            await each.end()
        began()
        for each, stream in zip(live, streams, strict=True):
            async with each:
                async for result in each:
                    stream.came(result)
                    if len(stream.results) % 16 == 0:
                        await asyncio.sleep(0)


class Keyed(Phase):
    """The events of all streams come from one source: each stream is a key of one `keyed`."""

    async def run(self, fn, streams, began):
        rows = zip(*(stream.events for stream in streams), strict=True)
        source = [(key, event) for row in rows for key, event in enumerate(row)]
        keys = iter([key for key, _ in source])
        events = [event for _, event in source]
        results = fn.options(buffer=16).keyed(events, key=lambda _: next(keys))
        async with contextlib.aclosing(results):
            # Where no supervisor answers yet, a lane cannot be opened.
            key, result = await anext(results)
            began()
            streams[key].came(result)
            async for key, result in results:
                streams[key].came(result)


PHASES = {
    phase.name: phase
    for phase in (
        Idle("idle", 8, lambda rng: small(rng, 40), 0.01),
        Opening("opening", 24, lambda rng: small(rng, 10), 0.03),
        Flowing("under load", 8, lambda rng: small(rng, 1500), 0.05),
        Flowing("mid-frame", 3, lambda rng: frames(rng, 10), 0.05),
        Flowing("ring growing", 3, lambda rng: doubling(rng, 42), 0.03),
        Keyed("keyed", 40, lambda rng: small(rng, 200), 0.05),
        Draining("draining", 8, lambda rng: small(rng, 3000), 0.02),
    )
}
