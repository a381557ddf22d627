"""A group of programs that share a topic and a store of checkpoints, while members come and go.

    python tests/chaos/groups.py --storms 8 --kills 6

The topic has twelve partitions. Members are added, killed, frozen beyond the time after which the
group gives their partitions to others, and stopped, all while records come. Then what readers of
the results see is held against what the same records give when nobody disturbs them.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

sys.path.append(str(Path(__file__).parents[1] / "python" / "support"))

from ends import Servers  # noqa: E402
from group_member import BEGINS  # noqa: E402
from helpers import until_sync  # noqa: E402
from outcome import Outcome  # noqa: E402
from sequences import events, expected  # noqa: E402

__all__ = ["PARTITIONS", "GroupOutcome", "Storm", "storm"]

PROGRAM = Path(__file__).with_name("group_member.py")
PARTITIONS, KEYS = 12, 48
# After so many milliseconds without a word, the group gives a member's partitions to others.
SESSION = 2000
# What takes longer hangs; seconds.
HANGS = 120
# So many records come before each step.
SHARE = 240


@dataclasses.dataclass
class GroupOutcome(Outcome):
    """What storms came to.

    Attributes:
        steps: How often each kind of step was taken.
        results: How many results there were.
        superseded: How many members ended because another one had taken over a shard, before their
            group said so, and were started again.

    """

    results: int = 0
    superseded: int = 0
    steps: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class Storm:
    """One topic, one store of checkpoints, and members.

    Args:
        mode: "inline" or "process".
        server: The broker.
        store: The URL of the checkpoints.
        folder: An empty folder, for logs.
        rng: Decides on records and instants.
        steps: How many records there are: a share for each step.

    """

    def __init__(self, mode, server, store, folder, rng, steps):
        self._mode = mode
        self._server = server
        self._store = store
        self._folder = folder
        self._rng = rng
        self._events = events(SHARE * steps, KEYS, rng.random())
        self._fed = 0
        name = f"group-{secrets.token_hex(4)}"
        self._source = server.topic(PARTITIONS, name)
        self._sink = server.topic(PARTITIONS, f"{name}-results")
        self._members = []
        self.superseded = 0
        self._started = 0
        self._results = []
        self._reader = Consumer(
            {
                "bootstrap.servers": server.address,
                "group.id": "any",
                "isolation.level": "read_committed",
            }
        )
        places = [TopicPartition(self._sink, number, 0) for number in range(PARTITIONS)]
        self._reader.assign(places)

    # Records and results.

    def feed(self):
        """Have a share of the records come."""
        share = self._events[self._fed : self._fed + SHARE]
        self._fed += len(share)
        by_key = collections.defaultdict(list)
        for event in share:
            by_key[event["k"]].append(json.dumps(event).encode())
        for key, values in by_key.items():
            self._server.produce(self._source, values, str(key))

    def wait_for(self, share):
        """Wait for a share of the results of the last records, and all of those before."""
        before = self._awaited(self._fed - SHARE)
        wanted = before + round(share * (self._awaited(self._fed) - before))
        deadline = time.monotonic() + HANGS
        while len(self._results) < wanted:
            self._read()
            self._check_members()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._results)} of {wanted} results: {self.told()}")

    def _awaited(self, count):
        return sum(2 - event["fails"] for event in self._events[:count])

    def _read(self):
        for message in self._reader.consume(500, 0.05):
            if message.error() is None:
                self._results.append(json.loads(message.value()))

    def compare(self, outcome):
        """Hold what readers see against what an undisturbed run gives."""
        for place in self._reader.assignment():
            _, end = self._reader.get_watermark_offsets(place, timeout=HANGS)
            deadline = time.monotonic() + HANGS
            while (at := self._reader.position([place])[0].offset) < end > 0:
                self._read()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{place.topic} {place.partition}: {at} of {end} records")
        outcome.results += len(self._results)
        came = collections.defaultdict(list)
        for result in self._results:
            came[result["k"]].append(tuple(sorted(result.items())))
        should = expected(self._events[: self._fed])
        for key in came.keys() | should.keys():
            wanted = [tuple(sorted(r.items())) for r in should.get(key, ()) if r["what"] != "ends"]
            outcome.compare(came[key], wanted)

    # Members.

    def start(self):
        """Start a member."""
        self._started += 1
        source = (
            f"kafka://{self._server.address}/{self._source}?group={self._source}"
            f"&config.session.timeout.ms={SESSION}&config.heartbeat.interval.ms=300"
        )
        sink = f"kafka://{self._server.address}/{self._sink}"
        command = [sys.executable, str(PROGRAM), self._mode, source, sink, self._store]
        with (self._folder / f"member-{self._started}.log").open("wb") as log:
            cache = str(self._folder / f"cache-{self._started}")
            environment = {**os.environ, "VELO_CHECKPOINT_CACHE": cache}
            member = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        member.log = Path(log.name)
        self._members.append(member)
        return member

    def _check_members(self):
        for member in list(self._members):
            if member.poll() is not None:
                self._members.remove(member)
                self._replace(member)

    def _replace(self, member):
        """Start a member anew that has ended because of others, as a service manager does."""
        if "errors.Superseded: " not in _end_of(member).splitlines()[-1]:
            raise RuntimeError(f"a member ended with {member.returncode}: {_end_of(member)}")
        self.superseded += 1
        self.start()

    def kill(self):
        """Kill a member at any time, and start another one in its place."""
        member = self._members.pop(self._rng.randrange(len(self._members)))
        member.kill()
        member.wait()
        self.start()

    def freeze(self):
        """Stop a member until others have done its work, and let it go on: it is a zombie."""
        member = self._rng.choice(self._members)
        member.send_signal(signal.SIGSTOP)
        try:
            self.wait_for(1)
        finally:
            member.send_signal(signal.SIGCONT)

    def stop(self):
        """Stop a member by SIGTERM: it gives its partitions away, and ends."""
        member = self._members.pop(self._rng.randrange(len(self._members)))
        until_sync(lambda: member.poll() is not None or _is_ready(member), HANGS)
        member.send_signal(signal.SIGTERM)
        code = member.wait(HANGS)
        if code == 1 and "errors.Superseded: " in _end_of(member).splitlines()[-1]:
            self.superseded += 1  # before it was stopped
        elif code:
            raise RuntimeError(f"a member that was stopped ended with {code}: {_end_of(member)}")

    def close(self):
        """End all that is left."""
        for member in self._members:
            member.kill()
            member.wait()
        self._reader.close()
        self._server.disconnect()

    def told(self):
        """What members have printed last."""
        return "\n".join(_end_of(member) for member in self._members)


def _is_ready(member):
    return BEGINS in member.log.read_text(errors="replace")


def _end_of(member):
    return f"{member.log.name}:\n{member.log.read_text(errors='replace')[-3000:]}"


def storm(mode, server, kills, outcome, seed):
    """Let a group grow from one member to four and shrink to two; kill and freeze members."""
    rng = random.Random(seed)
    steps = [Storm.start, *[Storm.kill] * kills, Storm.freeze, Storm.stop]
    with contextlib.ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="velo-group-")))
        store = (folder / "store").as_uri()
        group = Storm(mode, server, store, folder, rng, len(steps) + 1)
        closing.callback(group.close)
        outcome.runs += 1
        try:
            group.start()
            for step in steps:
                group.feed()
                group.wait_for(rng.uniform(0.1, 0.6))
                for _ in range({Storm.start: 3, Storm.stop: 2}.get(step, 1)):
                    step(group)
                    outcome.steps[step.__name__] += 1
            group.feed()
            group.wait_for(1)
            group.stop()
            group.stop()
            group.compare(outcome)
            outcome.superseded += group.superseded
        except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
            outcome.failed.append(f"seed {seed}: {error}")


def main():
    """Let storms come, and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storms", type=int, default=8)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print("| mode | storms | killed | frozen | superseded | results | lost | doubled | wrong |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="velo-servers-") as folder:
        servers = Servers(Path(folder))
        try:
            for mode in ("inline", "process"):
                outcome = GroupOutcome()
                for number in range(options.storms // 2):
                    storm(mode, servers["kafka"], options.kills, outcome, options.seed + number)
                figures = (
                    *(outcome.runs, outcome.steps["kill"], outcome.steps["freeze"]),
                    outcome.superseded,
                    *(f"{outcome.results:,}", outcome.lost, outcome.doubled, outcome.wrong),
                )
                print(f"| {mode} | {' | '.join(map(str, figures))} |", *outcome.failed, flush=True)
        finally:
            servers.stop()


if __name__ == "__main__":
    main()
