"""Live keys under operations chosen by chance: what comes out is what went in, in order."""

import asyncio
import random

import pytest

from helpers import HANG
from velo import stream_fn

KEYS = 4


@stream_fn
async def told(events):
    async for number, seconds, then in events:
        if seconds:
            await asyncio.sleep(seconds)
        if then == "raise":
            raise ValueError(number)
        yield number
        if then == "return":
            return
    yield "end"


async def life(chance, **settings):
    """Sends events, and ends keys. Returns both of each key, and its results."""
    did = {key: [] for key in range(KEYS)}
    got = {key: [] for key in range(KEYS)}
    max_pending, finished = chance.choice([2, 5, 50]), chance.choice(["ignore", "restart"])
    terms = {"max_pending": max_pending, "finished_keys": finished, "on_error": "drop"}
    async with told.options(**settings).keys(**terms) as keys:

        async def read():
            async for key, result in keys:
                got[key].append(result)

        reading = asyncio.create_task(read())
        for number in range(80):
            key = chance.randrange(KEYS)
            if chance.random() < 0.15:
                await keys.end(key)
                did[key].append("end")
            else:
                then = chance.choices(["", "raise", "return"], [90, 5, 5])[0]
                await keys.send(key, (number, 0.001 if chance.random() < 0.2 else 0, then))
                did[key].append((number, then))
        await keys.end_all()
        await reading
    assert (keys.metrics.open, keys.metrics.queued, keys.metrics.unread) == (0, 0, 0)
    return did, got


def runs(did):
    """The results of runs of the function that neither raise nor return."""
    results, is_open = [], False
    for what in [*did, "end"]:
        if what != "end":
            results.append(what[0])
            is_open = True
        elif is_open:
            results.append("end")
            is_open = False
    return results


@pytest.mark.parametrize("places", [None, 1, 2])
async def test_each_key_gives_its_results_in_order_and_once(mode, places, long):
    for seed in range(1000 if long else 40):
        chance = random.Random(f"{mode} {places} {seed}")
        settings = {"mode": mode, "buffer": chance.choice([1, 2, 8]), "max_concurrent": places}
        if mode == "process":
            settings["workers"] = 1
        async with asyncio.timeout(HANG):
            did, got = await life(chance, **settings)
        for key in range(KEYS):
            numbers = [result for result in got[key] if result != "end"]
            assert numbers == sorted(set(numbers)), (seed, key)
            if any(what != "end" and what[1] for what in did[key]):
                continue  # some events are lost with the function that raises or returns
            assert numbers == [what[0] for what in did[key] if what != "end"], (seed, key)
            if places is None:  # otherwise a key may also end to make room
                assert got[key] == runs(did[key]), (seed, key)
