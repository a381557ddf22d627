r"""Aircraft with unusual turnarounds, and how far a delay travels with them.

One stream per aircraft, over every flight that left New York City in 2013. A stream keeps the usual
values of its own aircraft, in plain local variables.

    python examples/data.py
    velo run examples/flights.py:turnarounds --input examples/data/flights.csv --key tailnum \
        --mode process --output examples/out/flights.ndjson
    python examples/flights.py examples/out/flights.ndjson

The last command prints the longest chains of delay and the most unusual turnarounds.
"""

import json
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean, median
from typing import Any

from velo import stream_fn

Flight = dict[str, Any]

LATE = 30  # minutes from which a flight counts as late
LONGEST = 8 * 60  # minutes; a longer time means a night, or a flight elsewhere
ENOUGH = 8  # turnarounds that make a usual value


@stream_fn
async def turnarounds(flights: AsyncIterator[Flight]) -> AsyncIterator[Flight]:
    """Flag unusual turnarounds between two departures of one aircraft.

    The data has only departures from New York: in between, the aircraft flew out and back. So its
    time on the ground is the time between two departures less twice the time in the air.
    """
    delays: deque[float] = deque(maxlen=20)
    grounded: deque[float] = deque(maxlen=30)
    before: Flight | None = None
    chain = 0

    async for flight in flights:
        if flight["dep_delay"] is None or flight["air_time"] is None:
            before, chain = None, 0  # cancelled or diverted: its next place is unknown
            continue
        delays.append(flight["dep_delay"])
        ground = minutes_on_the_ground(before, flight) if before else None

        if before and ground is not None:
            usual = median(grounded) if len(grounded) >= ENOUGH else None
            grounded.append(ground)
            passed_on = before["arr_delay"] >= LATE and flight["dep_delay"] >= LATE
            chain = chain + 1 if passed_on else 0
            why = "delay passed on" if passed_on else unusual(ground, usual, grounded)
            if why:
                yield {
                    "why": why,
                    "date": flight["time_hour"][:10],
                    "flight": f"{flight['carrier']}{flight['flight']}",
                    "route": f"{flight['origin']}-{flight['dest']}",
                    "ground": ground,
                    "usual": usual,
                    "arrived_late": before["arr_delay"],
                    "left_late": flight["dep_delay"],
                    "recent_delay": round(fmean(delays), 1),
                    "chain": chain,
                }
        else:
            chain = 0
        before = flight


def minutes_on_the_ground(before: Flight, flight: Flight) -> float | None:
    """Return the minutes on the ground between two trips; None if it was not a turnaround."""
    away = (departure(flight) - departure(before)).total_seconds() / 60
    ground = away - 2 * before["air_time"]
    return ground if 0 < ground <= LONGEST else None


def departure(flight: Flight) -> datetime:
    """Return the actual time of departure."""
    hour = datetime.fromisoformat(flight["time_hour"])
    return hour + timedelta(minutes=flight["minute"] + flight["dep_delay"])


def unusual(ground: float, usual: float | None, grounded: deque[float]) -> str | None:
    """Classify a turnaround, compared with the usual ones of the aircraft."""
    if usual is None:
        return None
    spread = max(median(abs(other - usual) for other in grounded), 15)
    if ground > usual + 4 * spread:
        return "slow turnaround"
    if ground < usual - 3 * spread:
        return "quick turnaround"
    return None


def report(path: Path) -> None:
    """Print the top findings of a results file."""
    findings = [json.loads(line) for line in path.read_text().splitlines()]
    for kind, count in Counter(finding["result"]["why"] for finding in findings).most_common():
        print(f"{count:>7,}  {kind}")

    print("\nlongest chains of delay   date        flight   route    late by   departures in a row")
    chains = sorted(findings, key=lambda f: (-f["result"]["chain"], f["result"]["date"]))
    for finding in chains[:5]:
        show(finding, f"{finding['result']['chain'] + 1:>12}")

    print("\nquickest turnarounds      date        flight   route    late by   on the ground")
    quick = [finding for finding in findings if finding["result"]["why"] == "quick turnaround"]
    for finding in sorted(quick, key=lambda f: f["result"]["ground"] - f["result"]["usual"])[:5]:
        result = finding["result"]
        show(finding, f"{result['ground']:>8.0f} min ({result['usual']:.0f} min)")


def show(finding: Flight, detail: str) -> None:
    """Print one finding as a row of the table."""
    result = finding["result"]
    print(
        f"  {finding['key']:<22}  {result['date']}  {result['flight']:<7}  {result['route']:<7}"
        f"  {result['left_late']:>3} min  {detail}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    report(Path(sys.argv[1]))
