"""The job of `connect`: the events, the function, and the results that a run has to give."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from velo import stream_fn

__all__ = ["KEYS", "Checked", "events", "spending"]

KEYS = 1_000


def events(count: int) -> Iterator[dict[str, Any]]:
    """Give `count` events, in an order that is the same each time."""
    some = random.Random(KEYS)
    for number in range(count):
        user = f"user-{some.randrange(KEYS)}"
        yield {"user": user, "amount": number % 1_000 + 0.5, "count": number % 10, "ok": True}


@stream_fn
async def spending(payments: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Count the events of a user, and add up their amounts; the first result has the time."""
    count, total = 0, 0.0
    async for payment in payments:
        count += 1
        total += payment["amount"]
        result = {"user": payment["user"], "count": count, "total": total}
        if count == 1:
            result["began"] = time.time()
        yield result


class Checked:
    """Checks results while they come: each once, and in the order of their user.

    Attributes:
        began: The earliest time in a result; infinite without one.

    Args:
        count: The number of events.
        copied: Whether the results are the events themselves.

    """

    def __init__(self, count: int, *, copied: bool) -> None:
        self._open: dict[str, list[dict[str, Any]]] = {}
        self._left = count
        self.began = math.inf
        totals: dict[str, float] = {}
        for event in events(count):
            user = event["user"]
            total = totals[user] = totals.get(user, 0.0) + event["amount"]
            results = self._open.setdefault(user, [])
            done = {"user": user, "count": len(results) + 1, "total": total}
            results.append(event if copied else done)
        for results in self._open.values():
            results.reverse()

    @property
    def left(self) -> int:
        """The number of results that are still to come."""
        return self._left

    def take(self, data: bytes) -> None:
        """Check the next result.

        Raises:
            RuntimeError: It is not the next one of its user.

        """
        result = json.loads(data)
        self.began = min(self.began, result.pop("began", math.inf))
        results = self._open.get(result["user"])
        expected = results.pop() if results else None
        if result != expected:
            raise RuntimeError(f"the result is {result} instead of {expected}")
        self._left -= 1
