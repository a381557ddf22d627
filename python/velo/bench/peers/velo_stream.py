"""velo-stream 0.x, run by an interpreter that has it; this file imports no other file of velo.

Called as `python velo_stream.py ARGUMENTS`: the measurement and its arguments, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

EVENTS: dict[str, Any] = {
    "64 bytes": b"x" * 64,
    "a four-field dict": {"user": "user-42", "amount": 17.5, "count": 3, "ok": True},
}  # at its rate it makes no difference whether they differ


def passthrough() -> Any:
    """Make its function."""
    from velo import stream_fn

    @stream_fn
    async def passthrough(events: Any) -> Any:
        async for event in events:
            yield event

    return passthrough


async def throughput(event: str, seconds: float) -> dict[str, float]:
    """Keep up to 64 events in flight; its queues drop more."""
    async with passthrough().open() as stream:
        begin, sent, got = time.perf_counter(), 0, 0
        while time.perf_counter() < begin + seconds or got < sent:
            while sent - got < 64 and time.perf_counter() < begin + seconds:
                await stream.send(EVENTS[event])
                sent += 1
            await stream.recv()
            got += 1
        return {"rate": got / (time.perf_counter() - begin)}


async def round_trips(seconds: float) -> dict[str, float]:
    """Send one, receive one."""
    times: list[float] = []
    async with passthrough().open() as stream:
        until = time.perf_counter() + seconds
        while len(times) < 20 or time.perf_counter() < until:
            begin = time.perf_counter()
            await stream.send(EVENTS["64 bytes"])
            await stream.recv()
            times.append(time.perf_counter() - begin)
    cuts = statistics.quantiles(times, n=100)
    return {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6}


if __name__ == "__main__":
    name, *arguments = json.loads(sys.argv[1])
    measure: Any = {"throughput": throughput, "round_trips": round_trips}[name]
    print(json.dumps(asyncio.run(measure(*arguments))))
