"""Running figures of each aircraft, in a state that moves with its partition.

velo run examples/scale-out/aircraft.py:figures --record-key \
        --input 'kafka://localhost:9092/flights?group=figures' \
        --output kafka://localhost:9092/delays --checkpoint file:///var/lib/figures
"""

from collections.abc import AsyncIterator
from typing import Any

from velo import stream_fn

Flight = dict[str, Any]


@stream_fn
async def figures(flights: AsyncIterator[Flight], state: dict[str, Any]) -> AsyncIterator[Flight]:
    """Count the flights of an aircraft, with its mean delay so far in minutes."""
    async for flight in flights:
        state["flights"] = state.get("flights", 0) + 1
        state["late"] = state.get("late", 0.0) + flight["delay"]
        yield {
            "id": flight["id"],
            "tailnum": flight["tailnum"],
            "flights": state["flights"],
            "mean_delay": round(state["late"] / state["flights"], 1),
        }
