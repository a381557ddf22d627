"""Stream functions with a state, for sessions that a supervisor stores."""

import asyncio
import os

from functions import mark
from velo import stream_fn


@stream_fn(mode="process", workers=2, timeout=20)
async def sequence(events, state):
    """Counts its events, and remembers their order; `None` asks, and is not counted."""
    async for event in events:
        if event is not None:
            state["n"] = state.get("n", 0) + 1
            state["hash"] = following(state.get("hash", 7), event)
        yield state.get("n", 0), state.get("hash", 7), os.getpid()


def following(before, event):
    """The hash of a sequence, from the one before its last event."""
    return (before * 31 + event) % 1_000_003


def expected(events):
    """What `sequence` has after these events."""
    value = 7
    for event in events:
        value = following(value, event)
    return len(events), value


@stream_fn(mode="process", workers=1)
async def marks_both_ends(events, state):
    """Counts, and marks a file where it sees the end of its input, and where it is cancelled."""
    path = None
    try:
        async for path in events:
            state["n"] = state.get("n", 0) + 1
            yield state["n"]
        mark(path, "end")
    except asyncio.CancelledError:
        mark(path, "cancelled")
        raise


@stream_fn(mode="process", workers=1, timeout=20)
async def obeys(events, state):
    """Counts; returns, raises, holds an object or takes its time when it is told to."""
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        if event == "return":
            return
        if event == "raise":
            raise ValueError("as it was told")
        if event == "object":
            state["object"] = Anything()
        if isinstance(event, float):
            await asyncio.sleep(event)
        yield state["n"], os.getpid()


class Anything:
    """A value that travels as a pickle."""
