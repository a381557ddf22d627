"""Flights by aircraft through Kafka, by three programs, one of which is killed in the middle.

    pip install 'velo-stream[kafka,objects,examples]'
    python examples/scale-out/members.py

Starts a broker (as `examples/kafka/run.py` does), produces flights into one topic, and starts three
times the same command. Flights go on coming when one of the three is killed with SIGKILL; the other
two go on with its partitions. At the end the results of each aircraft are compared with those of a
run that nobody disturbs.
"""

from __future__ import annotations

import argparse
import collections
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

sys.path[:0] = [str(HERE.parent), str(HERE.parent / "kafka")]
from aircraft import figures  # noqa: E402
from run import Results, broker, produce  # noqa: E402

import data  # noqa: E402

MEMBERS, PARTITIONS = 3, 12
# Another member takes over once a dead one has said nothing for so long.
SESSION = "config.session.timeout.ms=6000&config.heartbeat.interval.ms=1000"


def start(address: str, number: int, mode: str) -> subprocess.Popen[bytes]:
    """Start a member: on another machine, it would be the same command."""
    command = [
        sys.executable, "-m", "velo", "run", f"{HERE / 'aircraft.py'}:figures", "--record-key",
        "--input", f"kafka://{address}/flights?group=figures&{SESSION}",
        "--output", f"kafka://{address}/delays", "--mode", mode,
        "--checkpoint", (data.OUT / "shards").as_uri(),
    ]  # fmt: skip
    if number == 1:
        print(f"$ velo {' '.join(command[3:])}", flush=True)
    # On a machine of its own, each would have a cache of its own.
    cache = str(data.OUT / f"cache-{number}")
    environment = {**os.environ, "VELO_CHECKPOINT_CACHE": cache}
    with (data.OUT / f"member-{number}.log").open("wb") as log:
        return subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)


def undisturbed(count: int) -> dict[str, list[Any]]:
    """Give the results of each aircraft as one program has them, without Kafka."""
    with data.flights().open() as file:
        flights = [
            {"id": number, "tailnum": row["tailnum"], "delay": float(row["dep_delay"] or 0)}
            for number, row in enumerate(islice(csv.DictReader(file), count))
            if row["tailnum"]
        ]
    return by_aircraft(result for _, result in figures.keyed_sync(flights, key="tailnum"))


def by_aircraft(results: Any) -> dict[str, list[Any]]:
    """Give the results of each aircraft, in their order."""
    found = collections.defaultdict(list)
    for result in results:
        found[result["tailnum"]].append(result)
    return dict(found)


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--flights", type=int, default=400_000, help="how many, in their order")
    parser.add_argument("--mode", default="inline", choices=("inline", "process"))
    options = parser.parse_args()
    for folder in data.OUT.glob("cache-*"):
        shutil.rmtree(folder)
    shutil.rmtree(data.OUT / "shards", ignore_errors=True)
    with broker(data.OUT / "kafka", PARTITIONS) as address:
        half = options.flights // 2
        flights = produce(address, half)
        print(f"{flights:,} flights are in the {PARTITIONS} partitions of the topic `flights`")
        results = Results(address, PARTITIONS)
        begin = time.monotonic()
        members = [start(address, number, options.mode) for number in range(1, MEMBERS + 1)]
        try:
            wait_for(results, flights, members)
            print(
                f"{len(results.found):,} results were there after {time.monotonic() - begin:.1f} s"
            )
            with ThreadPoolExecutor() as thread:
                more = thread.submit(produce, address, options.flights, half)
                wait_for(results, flights + 1, members)
                killed = members.pop()
                os.killpg(killed.pid, signal.SIGKILL)
                killed.wait()
                print(f"killed one of {MEMBERS} members when {len(results.found):,} were there")
                flights += more.result()
            wait_for(results, flights, members)
            print(f"all of {flights:,} results were there after {time.monotonic() - begin:.1f} s")
        finally:
            for member in members:
                member.terminate()
            codes = [member.wait() for member in members]
        results.close()
    print(f"the others ended with {codes} after SIGTERM")
    found, should = by_aircraft(results.found), undisturbed(options.flights)
    same = sum(found.get(aircraft) == should[aircraft] for aircraft in should)
    print(f"{len(results.found):,} results for {flights:,} flights")
    print(f"{same:,} of {len(should):,} aircraft have the results of an undisturbed run")
    if found != should:
        raise SystemExit(1)


def wait_for(results: Results, count: int, members: list[subprocess.Popen[bytes]]) -> None:
    """Wait for so many results."""
    while len(results.found) < count:
        results.read()
        for number, member in enumerate(members, 1):
            if member.poll() is not None:
                raise SystemExit(f"a member has failed: see {data.OUT / f'member-{number}.log'}")


if __name__ == "__main__":
    main()
