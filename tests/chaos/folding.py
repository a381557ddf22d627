"""A function whose results show which events each of its keys has seen, and in which order."""

import asyncio
import collections

from velo import stream_fn

__all__ = ["events", "expected", "fold"]


@stream_fn
async def fold(events, state):
    """Numbers the events of its key, and folds them into one number."""
    async for event in events:
        await asyncio.sleep(0.002)
        n, seen = state.get("n", 0) + 1, state.get("seen", 7)
        state["n"], state["seen"] = n, (seen * 31 + event["v"]) % 1_000_003
        yield {"k": event["k"], "v": event["v"], "n": n, "seen": state["seen"]}


def events(first, count, keys):
    """So many events, numbered from `first`, of some keys in turn."""
    return [{"k": value % keys, "v": value} for value in range(first, first + count)]


def expected(events):
    """The results of each key when nobody disturbs it."""
    found, states = collections.defaultdict(list), {}
    for event in events:
        n, seen = states.get(event["k"], (0, 7))
        states[event["k"]] = n, seen = n + 1, (seen * 31 + event["v"]) % 1_000_003
        found[event["k"]].append({**event, "n": n, "seen": seen})
    return dict(found)
