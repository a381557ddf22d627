"""Sources that give what a test says, and functions that count what comes and wait."""

import asyncio

from velo import stream_fn
from velo.connect import Record

__all__ = ["Scripted", "counts", "records", "waiting"]


@stream_fn
async def counts(events):
    """Counts per key, and says at the end how far it came."""
    number = 0
    async for event in events:
        if event.get("fails"):
            raise ValueError("refused")
        number += 1
        yield event["k"], number, events.record.position


class Scripted:
    """A source that gives what a test says, and notes what is asked of it."""

    name = "scripted"

    def __init__(self, *items):
        self.items = items
        self.calls = []
        self.committed = {}

    async def __aiter__(self):
        for item in self.items:
            if callable(item):
                await item()
                continue
            self.calls.append(("give", item))
            yield item

    async def commit(self, positions):
        self.calls.append(("commit", dict(positions)))
        self.committed.update(positions)

    async def close(self):
        self.calls.append(("close", None))


def waiting(mode, gate, slow):
    """A function whose event `slow` waits until the file `gate` is there."""

    @stream_fn(mode=mode)
    async def waits(events):
        async for event in events:
            while event == slow and not gate.exists():
                await asyncio.sleep(0.001)
            yield event

    return waits


def records(partition, values, first=0):
    return [Record(v, partition=partition, position=first + i) for i, v in enumerate(values)]
