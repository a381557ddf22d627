"""Running figures of each aircraft: one result for each flight.

velo run examples/kafka/delays.py:delays --key tailnum \
        --input 'kafka://localhost:9092/flights?group=delays' --output kafka://localhost:9092/delays
"""

from collections.abc import AsyncIterator
from typing import Any

from velo import stream_fn

Flight = dict[str, Any]


@stream_fn
async def delays(flights: AsyncIterator[Flight]) -> AsyncIterator[Flight]:
    """Count the flights of an aircraft, with its mean delay so far in minutes."""
    count, late = 0, 0.0
    async for flight in flights:
        count += 1
        late += flight["delay"]
        yield {"id": flight["id"], "flights": count, "mean_delay": round(late / count, 1)}
