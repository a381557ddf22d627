"""A function whose results show which events each of its keys has seen, in which order."""

import asyncio
import collections
import random

from velo import stream_fn

__all__ = ["HOW", "events", "expected", "refused", "sequence"]

HOW = {"key": "k", "max_pending": 48, "finished_keys": "restart"}
"""How `keyed` is called. A record that waits holds up what is read: so a run takes its time."""


@stream_fn
async def sequence(events, state):
    """Numbers the events of its key, and folds them into one number.

    An event may wait, fail, or end the key, which begins anew with its next event.
    """
    async for event in events:
        state["k"] = event["k"]  # for a key that only ends after a restart
        of = {"k": event["k"], "v": event["v"], "what": "sees"}
        # A result before the event is handled: the tick must not take it on its own.
        yield {**of, "n": state.get("n", 0), "fold": 0}
        await asyncio.sleep(event["waits"])
        if event["fails"]:
            raise ValueError(f"refuses {event['v']}")
        state["n"] = state.get("n", 0) + 1
        state["fold"] = (state.get("fold", 7) * 31 + event["v"]) % 1_000_003
        yield {**of, "what": "counts", "n": state["n"], "fold": state["fold"]}
        if event["ends"]:
            return
    yield {"k": state["k"], "v": -1, "what": "ends", "n": state["n"], "fold": state["fold"]}


def events(count, keys, seed):
    """Some events: of each 100, about 5 take longer than a tick waits, 2 fail and 2 end a key."""
    rng = random.Random(seed)
    return [
        {
            "k": rng.randrange(keys),
            "v": value,
            "waits": rng.uniform(0.01, 0.08) if rng.random() < 0.05 else 0,
            "fails": rng.random() < 0.02,
            "ends": rng.random() < 0.02,
        }
        for value in range(count)
    ]


def expected(events):
    """The results of each key when nobody disturbs it."""
    results, states = collections.defaultdict(list), {}
    for event in events:
        key, value = event["k"], event["v"]
        n, fold = states.pop(key, (0, 7))
        results[key].append({"k": key, "v": value, "what": "sees", "n": n, "fold": 0})
        if event["fails"]:
            continue
        n, fold = n + 1, (fold * 31 + value) % 1_000_003
        results[key].append({"k": key, "v": value, "what": "counts", "n": n, "fold": fold})
        if not event["ends"]:
            states[key] = n, fold
    for key, (n, fold) in states.items():
        results[key].append({"k": key, "v": -1, "what": "ends", "n": n, "fold": fold})
    return dict(results)


def refused(events):
    """The values of events that fail."""
    return {event["v"] for event in events if event["fails"]}
