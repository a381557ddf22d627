"""The kill matrix: whatever dies or stands still, whenever it does, nothing is lost.

    python tests/chaos/matrix.py --runs 200

prints a table of all cells. Each run has one phase (`phases.py`) hit by one fault
(`fault_injection.py`) at a random instant, and holds what came out against an undisturbed run.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from fault_injection import FaultInjection
from outcome import Outcome, table
from phases import PHASES, expected
from places import Daemon, Embedded, gone, line_of, segments, still_there
from work import account

HOW = ("kill", "stop")
VICTIMS = ("worker", "zygote", "daemon", "client")
# A run that takes longer than this hangs; seconds.
HANGS = 30
# Everything of a dead process must be gone after so many seconds.
GONE = 10.0


async def undisturbed(phase, place, seed):
    """How many seconds a run of the phase takes from when the fault may come."""
    loop = asyncio.get_running_loop()
    began = loop.create_future()

    def begin():
        began.set_result(time.monotonic())
        return began

    await phase.run(account.options(**place.settings), phase.streams(random.Random(seed)), begin)
    return time.monotonic() - began.result()


async def one_run(outcome, phase, place, victim, how, seed, seconds):
    """Hit one of the processes around this one, once, within `seconds`."""
    rng = random.Random(seed)
    fn = account.options(**place.settings)
    streams = phase.streams(rng)
    fault = FaultInjection(rng, how, seconds, lambda: place.processes()[victim], place.mend)
    outcome.runs += 1
    try:
        async with asyncio.timeout(HANGS):
            await phase.run(fn, streams, fault.begin)
            fault.over()
            again = await asyncio.gather(*(fn.run([(0, b"after")]) for _ in range(2)))
        check = zlib.crc32(b"after")
        outcome.wrong += again != [[(0, 1, check), ("end", 1, check)]] * 2
    except Exception as error:
        fault.over()
        outcome.failed.append(f"seed {seed}: {error!r}")
        return
    for stream in streams:
        outcome.compare(stream.results, await expected(account, stream))
    outcome.hits += fault.at is not None
    outcome.pause(fault.at, streams)


def inside(phase, victim, how, runs, seed):
    """Hit a worker, the zygote or the daemon, below or beside this process."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        place = Daemon(Path(folder)) if victim == "daemon" else Embedded(os.getpid())

        async def all_runs():
            fn = account.options(**place.settings)
            await fn.run([(0, b"warm")])
            seconds = await undisturbed(phase, place, seed)
            for number in range(runs):
                await one_run(outcome, phase, place, victim, how, seed + number, seconds)

        before = segments()
        asyncio.run(all_runs())
        place.mend()  # a daemon that was killed last removes no socket
        pids = [pid for pids in place.processes().values() for pid in pids]
        place.close()
        from velo._process import clients

        clients.shutdown()
        outcome.left += len(gone(pids, GONE)) + len(segments() - before)
        outcome.left += sum(1 for left in Path(folder).iterdir() if left.suffix != ".log")
    return outcome


def outside(phase, how, runs, seed):
    """Hit a client."""
    outcome = Outcome()
    for number in range(runs if how == "kill" else 1):
        _one_client(outcome, phase, how, 1 if how == "kill" else runs, seed + number)
    return outcome


def _one_client(outcome, phase, how, runs, seed):
    rng = random.Random(seed)
    here = str(Path(__file__).with_name("client.py"))
    before = segments()
    client = subprocess.Popen(
        [sys.executable, here, phase.name, str(seed), str(runs)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(runs):
        outcome.runs += 1
        if not line_of(client, HANGS, f"that {phase.name} has come"):
            outcome.failed.append(f"seed {seed}: the client ended with {client.wait()}")
            return
        family = [pid for pids in Embedded(client.pid).processes().values() for pid in pids]
        time.sleep(rng.uniform(0, phase.seconds))
        outcome.hits += 1
        if how == "kill":
            client.kill()
            client.wait()
        else:
            client.send_signal(signal.SIGSTOP)
            time.sleep(rng.uniform(0.001, 0.03))
            client.send_signal(signal.SIGCONT)
            said = json.loads(line_of(client, HANGS, "what has come of it") or "{}")
            if not said:
                outcome.failed.append(f"seed {seed}: the client ended with {client.wait()}")
                return
            outcome.lost += said["lost"]
            outcome.doubled += said["doubled"]
            outcome.wrong += said["wrong"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        client.wait(GONE + 5)
    outcome.left += len(gone(family, GONE)) + len(segments() - before)
    client.stdout.close()
    if still_there([client.pid]):
        outcome.failed.append(f"seed {seed}: the client does not end")
        client.kill()
        client.wait()


def cell(victim, how, phase, runs, seed):
    """Run one cell of the matrix."""
    if victim == "client":
        return outside(PHASES[phase], how, runs, seed)
    return inside(PHASES[phase], victim, how, runs, seed)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--victim", action="append", choices=VICTIMS)
    parser.add_argument("--phase", action="append", choices=list(PHASES))
    options = parser.parse_args()
    outcomes = {}
    for victim in options.victim or VICTIMS:
        for how in HOW:
            for phase in options.phase or PHASES:
                began = time.monotonic()
                outcome = cell(victim, how, phase, options.runs, options.seed)
                outcomes[victim, how, phase] = outcome
                took = time.monotonic() - began
                print(
                    f"{victim}, {how}, {phase}: {took:.1f} s",
                    *outcome.failed,
                    sep="\n  ",
                    file=sys.stderr,
                    flush=True,
                )
    print(f"seed {options.seed}\n")
    print(table(outcomes))
    sys.exit(not all(outcome.clean for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
