"""Stream functions for the nodes of a cluster."""

import os

import key_sums
from velo import stream_fn

__all__ = [
    "Refused",
    "counted",
    "fails_at",
    "falls_once",
    "many_each",
    "numbered",
    "saved",
    "sums",
    "where",
]

sums = key_sums.sums.options(mode="ray")
saved = key_sums.saved.options(mode="ray")


class Refused(Exception):
    """One that `pickle` alone does not create again."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


@stream_fn(mode="ray")
async def where(events):
    """The supervisor's process of the worker that runs a key: another one on each node."""
    async for _ in events:
        yield os.getppid()


@stream_fn(mode="ray")
async def fails_at(events):
    """Raises at the event 3."""
    async for _, number in events:
        if number == 3:
            raise LookupError("three")
        yield number


@stream_fn(mode="ray", timeout=60.0)
async def counted(events):
    """Which event of its session each one is."""
    count = 0
    async for event in events:
        count += 1
        yield count, event


@stream_fn(mode="ray", buffer=4)
async def many_each(events):
    """More results of each event than there is room for."""
    async for event in events:
        for number in range(20):
            yield event, number


@stream_fn
async def numbered(events, state):
    """Numbers the records of each key."""
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        yield {"key": events.record.key.decode(), "n": state["n"], "event": event}


@stream_fn
async def falls_once(events):
    """Ends its program at the first event, unless a file says that it has."""
    async for event in events:
        if not os.path.exists(event["once"]):
            open(event["once"], "w").close()
            os._exit(3)
        yield event["n"]
