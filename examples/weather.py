"""Rolling statistics of sensors: the hours when the weather was unlike the week before.

One stream per weather station, each with a week of its own readings in local variables. The data
is the hourly weather at New York's three airports in 2013, including its gaps.

    python examples/weather.py

Prints, for each station, the hours whose temperature stood out most from the week before, and the
fastest fall of air pressure.
"""

import asyncio
import csv
import itertools
import sys
from collections import deque
from collections.abc import AsyncIterator
from statistics import fmean, pstdev
from typing import Any

import data
from velo import stream_fn

Reading = dict[str, Any]


@stream_fn
async def unlike_last_week(readings: AsyncIterator[Reading]) -> AsyncIterator[Reading]:
    """Compare each hour with the week before it."""
    temperatures: deque[float] = deque(maxlen=7 * 24)
    pressures: deque[float] = deque(maxlen=4)  # now, and the three hours before

    async for reading in readings:
        deviation = fall = 0.0
        if reading["temp"]:
            temperature = float(reading["temp"])
            if len(temperatures) >= 48:
                spread = max(pstdev(temperatures), 1)
                deviation = (temperature - fmean(temperatures)) / spread
            temperatures.append(temperature)
        pressures.append(float(reading["pressure"] or "nan"))
        if pressures[0] > pressures[-1]:  # never true for a missing value
            fall = pressures[0] - pressures[-1]
        yield reading | {"deviation": deviation, "fall": fall}


async def main(hours: int | None = None) -> None:
    """Run all stations in parallel, and print the highlights."""
    by_station: dict[str, list[Reading]] = {}
    with data.weather().open() as file:
        readings = itertools.islice(csv.DictReader(file), hours)
        async for station, result in unlike_last_week.keyed(readings, key="origin"):
            by_station.setdefault(station, []).append(result)

    for station, results in sorted(by_station.items()):
        print(f"{station}: {len(results):,} hours")
        results.sort(key=lambda result: -abs(result["deviation"]))
        for result in results[:3]:
            print(
                f"  {result['time_hour'][:16]}  {result['temp']:>6} °F"
                f"  {result['deviation']:+.1f} deviations from the week before"
            )
        storm = max(results, key=lambda result: result["fall"])
        print(
            f"  {storm['time_hour'][:16]}  pressure fell by {storm['fall']:.1f} hPa in three hours"
        )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else None))
