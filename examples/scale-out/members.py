"""Flights by aircraft through Kafka, by three programs, one of which is killed in the middle.

    pip install 'velo-stream[kafka,objects,examples]'
    python examples/scale-out/members.py

Starts a broker (as `examples/kafka/run.py` does), produces flights into one topic, and starts three
times the same command. Flights go on coming when one of the three is killed with SIGKILL; the other
two go on with its partitions. At the end the results of each aircraft are compared with those of a
run without a kill. The example ends with exit code 1 when they differ, when the broker or another
member ends, or when no result comes for a minute.
"""

from __future__ import annotations

import argparse
import collections
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

sys.path[:0] = [str(HERE.parent), str(HERE.parent / "kafka")]
from aircraft import figures  # noqa: E402
from run import Results, Waiting, broker, end, end_by_sigterm, own_folder, produce  # noqa: E402

import data  # noqa: E402

MEMBERS, PARTITIONS = 3, 12


class Member:
    """A member of the group: on another machine, it would be the same command.

    Args:
        folder: Where logs, checkpoints and caches are.
        address: The broker's.
        number: Which of the members it is, from 1.
        mode: "inline" or "process".
        session: Seconds without a heartbeat after which another member takes over.

    """

    def __init__(self, folder: Path, address: str, number: int, mode: str, session: float) -> None:
        silence = round(session * 1000)
        group = f"group=figures&config.session.timeout.ms={silence}"
        command = [
            sys.executable, "-m", "velo", "run", f"{HERE / 'aircraft.py'}:figures", "--record-key",
            "--input",
            f"kafka://{address}/flights?{group}&config.heartbeat.interval.ms={silence // 6}",
            "--output", f"kafka://{address}/delays", "--mode", mode,
            "--checkpoint", (folder / "shards").as_uri(),
        ]  # fmt: skip
        if number == 1:
            print(f"$ velo {' '.join(command[3:])}", flush=True)
        # On a machine of its own, each would have a cache of its own.
        environment = {**os.environ, "VELO_CHECKPOINT_CACHE": str(folder / f"cache-{number}")}
        self._number = number
        self._log = folder / f"member-{number}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stderr=log, env=environment, start_new_session=True
            )

    def check(self) -> None:
        """Raise SystemExit if it has ended."""
        if (code := self.process.poll()) is not None:
            raise SystemExit(
                f"member {self._number} has ended with exit code {code}: see {self._log}"
            )


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
    parser.add_argument(
        "--session", type=float, default=6.0, help="seconds until a silent member counts as dead"
    )
    options = parser.parse_args()
    end_by_sigterm()
    with own_folder("scale-out") as folder, broker(folder, PARTITIONS) as server:
        half = options.flights // 2
        flights = produce(server, half)
        print(f"{flights:,} flights are in the {PARTITIONS} partitions of the topic `flights`")
        results = Results(server.address, PARTITIONS)
        begin = time.monotonic()
        members: list[Member] = []
        try:
            for number in range(1, MEMBERS + 1):
                address = server.address
                members.append(Member(folder, address, number, options.mode, options.session))
            wait_for(results, flights, members, server.check)
            print(
                f"{len(results.found):,} results were there after {time.monotonic() - begin:.1f} s"
            )
            with ThreadPoolExecutor() as thread:
                more = thread.submit(produce, server, options.flights, half)
                wait_for(results, flights + 1, members, server.check)
                end(members.pop().process)
                print(f"killed one of {MEMBERS} members when {len(results.found):,} were there")
                flights += more.result()
            wait_for(results, flights, members, server.check)
            print(f"all of {flights:,} results were there after {time.monotonic() - begin:.1f} s")
        finally:
            for member in members:
                if member.process.poll() is None:
                    member.process.terminate()
            codes = [end(member.process, signal.SIGTERM) for member in members]
        results.close(server.check)
    print(f"the others ended with {codes} after SIGTERM")
    found, should = by_aircraft(results.found), undisturbed(options.flights)
    same = sum(found.get(aircraft) == should[aircraft] for aircraft in should)
    print(f"{len(results.found):,} results for {flights:,} flights")
    print(f"{same:,} of {len(should):,} aircraft have the results of an undisturbed run")
    if found != should:
        raise SystemExit(1)


def wait_for(
    results: Results, count: int, members: list[Member], check: Callable[[], None]
) -> None:
    """Wait for so many results."""
    waiting = Waiting(f"{count:,} results", check, *(member.check for member in members))
    while len(results.found) < count:
        results.read(waiting)


if __name__ == "__main__":
    main()
