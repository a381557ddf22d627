"""The measured functions, and their events."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from velo import stream_fn

__all__ = [
    "EVENTS",
    "burn",
    "burn_one",
    "corner",
    "events",
    "mean",
    "mean_of",
    "passthrough",
    "same",
    "same_each",
]

EVENTS: dict[str, Callable[[int], Any]] = {
    "64 bytes": lambda number: number.to_bytes(8, "big") * 8,
    "a four-field dict": lambda number: {
        "user": f"user-{number}",
        "amount": number + 0.5,
        "count": number % 10,
        "ok": True,
    },
}
"""Makes the event of a number, by the name of its kind."""


def events(name: str, count: int) -> list[Any]:
    """Return `count` events, of which 1,000 are different objects."""
    some = [EVENTS[name](number) for number in range(1_000)]
    return list(itertools.islice(itertools.cycle(some), count))


def same(event: Any) -> Any:
    """Give an event back."""
    return event


def same_each(events: list[Any]) -> list[Any]:
    """Handle the events of a batch one by one."""
    results = []
    for event in events:
        results.append(same(event))
    return results


def mean_of(frame: Any) -> float:
    """Reduce a frame to a number."""
    return float(frame.mean())


def burn_one(event: int) -> int:
    """Do some 50 microseconds of plain Python."""
    total = 0
    for i in range(1_000):
        total += i ^ event
    return total


@stream_fn
async def passthrough(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Give every event back."""
    async for event in events:
        yield event


@stream_fn
async def burn(events: AsyncIterator[int]) -> AsyncIterator[int]:
    """Do some 50 microseconds of plain Python per event."""
    async for event in events:
        yield burn_one(event)


@stream_fn
async def corner(frames: AsyncIterator[Any]) -> AsyncIterator[int]:
    """Read one number of every frame."""
    async for frame in frames:
        yield int(frame[0, 0, 0])


@stream_fn
async def mean(frames: AsyncIterator[Any]) -> AsyncIterator[float]:
    """Reduce every frame to a number."""
    async for frame in frames:
        yield float(frame.mean())
