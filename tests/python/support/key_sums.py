"""Sums of each key: functions, what they give, and the reading of results key by key."""

import asyncio

from helpers import HANG
from velo import stream_fn

__all__ = ["collect", "expected", "saved", "sums"]


@stream_fn
async def sums(events):
    """Running sums of each key, and at its end their number."""
    total = count = 0
    async for _, number in events:
        total, count = total + number, count + 1
        yield total
    yield "end", count


@stream_fn
async def saved(events, state):
    """The same, of which only the state survives."""
    state.setdefault("total", 0)
    state.setdefault("count", 0)
    async for _, number in events:
        state["total"] += number
        state["count"] += 1
        yield state["total"]
    yield "end", state["count"]


def expected(source):
    """What `sums` and `saved` give for pairs of a key and a number, key by key."""
    by_key, totals = {}, {}
    for key, number in source:
        totals[key] = totals.get(key, 0) + number
        by_key.setdefault(key, []).append(totals[key])
    for key, results in by_key.items():
        results.append(("end", len(results)))
    return by_key


async def collect(results, at=(), what=None):
    """All results, key by key.

    Args:
        results: Pairs of a key and a result.
        at: After how many results `what` is awaited.
        what: An async function without arguments: the fault of a test.

    """
    found, count = {}, 0
    async with asyncio.timeout(HANG):
        async for key, result in results:
            found.setdefault(key, []).append(result)
            count += 1
            if count in at:
                await what()
    return found
