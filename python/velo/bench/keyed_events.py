"""Events of many keys, and the function that counts them, for velo, its floors and its peers."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from velo import stream_fn

__all__ = [
    "FIELD",
    "KINDS",
    "SKEW",
    "SPREADS",
    "count_and_burn",
    "count_and_wait",
    "count_batch",
    "count_events",
    "events_of_keys",
    "is_slow",
]

KINDS: dict[str, Callable[[int, int], Any]] = {
    "tuples": lambda key, number: (key, number),
    "four-field dicts": lambda key, number: {
        "user": key,
        "amount": number + 0.5,
        "count": number % 10,
        "ok": True,
    },
}
"""Makes an event of its key and its number, by the name of its kind."""

FIELD: dict[str, Any] = {"tuples": 0, "four-field dicts": "user"}
"""The place of the key in such an event."""

SPREADS = ("even", "Zipf")

# The exponent of the Zipf distribution.
SKEW = 1.1
# One key in this number is slow, where a scenario has slow keys.
SLOW = 100


def events_of_keys(kind: str, keys: int, count: int, spread: str = "even") -> list[Any]:
    """Return `count` events in a random order that is the same each time.

    With an even spread each key has as many events as any other, or one more. With a Zipf spread
    the frequency of a key falls with its rank to the power of 1.1.
    """
    some = random.Random(keys)
    names = list(range(keys))
    if spread == "even":
        owners = list(itertools.islice(itertools.cycle(names), count))
        some.shuffle(owners)
    else:
        weights = list(itertools.accumulate((rank + 1) ** -SKEW for rank in range(keys)))
        owners = some.choices(names, cum_weights=weights, k=count)
    make = KINDS[kind]
    events = [make(key, number) for number, key in enumerate(owners)]
    gc.collect()
    gc.freeze()  # otherwise the garbage collector goes through all events repeatedly
    return events


def is_slow(key: int) -> bool:
    """Tell whether a key is one of the slow ones."""
    return key % SLOW == 0


@stream_fn
async def count_events(events: AsyncIterator[Any]) -> AsyncIterator[int]:
    """Count events."""
    count = 0
    async for _ in events:
        count += 1
        yield count


@stream_fn
async def count_and_wait(events: AsyncIterator[tuple[int, int]]) -> AsyncIterator[int]:
    """Count events; a slow key awaits 10 ms at each of them."""
    import asyncio

    count = 0
    async for key, _ in events:
        if is_slow(key):
            await asyncio.sleep(0.01)
        count += 1
        yield count


@stream_fn
async def count_and_burn(events: AsyncIterator[tuple[int, int]]) -> AsyncIterator[int]:
    """Count events, with some 50 microseconds of plain Python for each."""
    from velo.bench.functions import burn_one

    count = 0
    async for _, number in events:
        burn_one(number)
        count += 1
        yield count


def count_batch(events: list[Any]) -> list[tuple[int, int]]:
    """Do the same as `count_events` by hand: a dict of counts, and a list of events at a time."""
    results = []
    counts = _counts
    for key, _ in events:
        count = counts[key] = counts.get(key, 0) + 1
        results.append((key, count))
    return results


_counts: dict[int, int] = {}
