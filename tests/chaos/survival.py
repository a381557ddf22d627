"""Exactly once, by SIGKILL: a program with a checkpoint is hit until its source is at the end.

Then what readers of its sink see is held against what the same events give when nobody disturbs
them. `guarantees.py` does that for all pairs of source and sink.
"""

import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from click.testing import CliRunner

from ends import SINKS, SOURCES
from helpers import until_sync
from outcome import Outcome
from places import Embedded, gone, line_of, segments
from sequences import events, expected, refused
from survivor import STOPPED
from velo import _core
from velo._checkpoint import journal_file
from velo.cli.checkpoint.looking import inspect, verify

__all__ = ["HOW", "PAIRS", "Pair", "Survival", "survive"]

PROGRAM = Path(__file__).with_name("survivor.py")
COUNT, KEYS = 700, 12
# Steps at which the program kills itself, in one of its first ticks; each area has so many. There
# are more with a checkpoint in an object store, and for a source with an event journal.
STEPS, FIRST_TICKS = {"tick": 6}, 4
REMOTE_STEPS = {**STEPS, "upload": 2, "base": 3, "claim": 2}
JOURNAL_STEPS = {**STEPS, "journal": 6}
# Those that a program comes to once: the journal's are those of a file that is removed.
ONCE = {("claim", 1), ("claim", 2), ("journal", 5), ("journal", 6)}
# So many kills hit one program until it is left alone.
MOST = 10
# A start that takes longer hangs; seconds.
HANGS = 90
# Everything of a dead process must be gone after so many seconds.
GONE = 10.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """A source, a sink, and what is promised.

    Attributes:
        source: Its name in `SOURCES`.
        sink: Its name in `SINKS`.
        exact: Whether each result is there once; otherwise at least once.
        ordered: Whether records come again in the order in which they came first.
        again: Whether a record that was not acknowledged comes again, as another one.
        forgets: Whether records that were on their way to a program that dies are lost.
        seconds: A random kill comes within so many seconds from the beginning.
        remote: Whether the checkpoint is in an object store, and each program has a new machine.
        journal: Whether the source has an event journal.

    """

    source: str
    sink: str
    exact: bool = True
    ordered: bool = True
    again: bool = False
    forgets: bool = False
    seconds: float = 1.0
    remote: bool = False
    journal: bool = False

    @property
    def name(self):
        """Source and sink."""
        return f"{self.source}-{self.sink}{'-remote' * self.remote}"

    @property
    def steps(self):
        """Area and number of the steps at which the program kills itself."""
        areas = REMOTE_STEPS if self.remote else JOURNAL_STEPS if self.journal else STEPS
        return [(area, step + 1) for area, count in areas.items() for step in range(count)]

    @property
    def results(self):
        """How often a result is there."""
        if self.again:
            return "exactly once for each delivery"
        if self.forgets:
            return "exactly once for each record in the journal"
        return "exactly once" if self.exact else "at least once"


@dataclasses.dataclass
class Survival(Outcome):
    """All kills of one cell; `runs` counts them.

    Attributes:
        again: Results that came more than once, or events, where that is promised to nobody.
        gone: Events that have not arrived, where that is promised to nobody.

    """

    again: int = 0
    gone: int = 0


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("file", "file"),
        Pair("kafka", "kafka", seconds=2.0),
        Pair("file", "postgres"),
        Pair("kafka", "postgres", seconds=2.0),
        Pair("file", "redis", exact=False),
        Pair("redis", "file", journal=True),
        Pair("nats", "file", ordered=False, seconds=2.0, journal=True),
        Pair("rabbitmq", "file", ordered=False, again=True, seconds=2.0, journal=True),
        Pair("websocket", "file", ordered=False, forgets=True, journal=True),
        Pair("file", "file", remote=True),
        Pair("kafka", "kafka", seconds=2.0, remote=True),
    )
}


class Round:
    """A program from the first start to the end of its source.

    Args:
        pair: Source and sink.
        mode: "inline" or "process".
        servers: The servers.
        folder: An empty folder.
        rng: Decides on events and instants.

    """

    def __init__(self, pair, mode, servers, folder, rng):
        self._pair = pair
        self._rng = rng
        self._events = events(COUNT, KEYS, rng.random())
        self._source = SOURCES[pair.source](servers, folder)
        self._sink = SINKS[pair.sink](servers, folder)
        self._source.put(self._events)
        self._letters = folder / "letters.ndjson"
        self._checkpoint = str(folder / "checkpoint")
        self._machines = folder / "machines"
        source = self._source.url
        if pair.remote:  # a group would have a checkpoint for each partition: see `groups.py`
            self._checkpoint = (folder / "checkpoint").as_uri()
            source = self._source.alone
        self._journalled = set()  # the values of events that were seen in the journal
        self._log = folder / "log"
        self._command = [
            *(sys.executable, str(PROGRAM), mode, source, self._sink.url),
            self._letters.as_uri(),
            self._checkpoint,
            rng.choice(("end", "unload")),
            rng.choice(("none", "replay")),
        ]
        self._token = f"VELO_SURVIVOR={folder}"

    def run(self, how, most, outcome):
        """Hit it up to `most` times, let it come to its end, and look at what it has done."""
        before, kills = segments(), 0
        try:
            while kills < most:
                code, hit = HOW[how](self)
                if self._pair.journal:
                    self._journalled |= _journalled(Path(self._checkpoint))
                kills += hit
                outcome.runs += hit
                if code == 0 or not hit or code not in (-signal.SIGKILL, STOPPED):
                    break
            else:
                with self._started() as program:
                    code = self._end_of(program)
            if code:
                outcome.failed.append(f"the program ended with {code}: {self._told()}")
                return
            self._compare(outcome)
            outcome.left += len(gone(self._family(), GONE)) + len(segments() - before)
        finally:
            self._source.close()
            self._sink.close()

    # The program.

    @contextlib.contextmanager
    def _started(self, failpoint=""):
        """Start the program; go on once it begins."""
        self._source.settle()
        name, _, value = self._token.partition("=")
        environment = {
            **os.environ,
            "VELO_FAILPOINT": failpoint,
            name: value,
            # The last machine, or another one that has no working copy, or an old one.
            "VELO_CHECKPOINT_CACHE": str(self._machines / str(self._rng.randrange(3))),
        }
        with self._log.open("ab") as log:
            self._begun = log.tell()
            program = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        try:
            line_of(program, HANGS, "that it begins")
            yield program
        finally:
            program.kill()
            program.wait()
            program.stdout.close()

    def _end_of(self, program):
        try:
            return program.wait(HANGS)
        except subprocess.TimeoutExpired:
            return "a standstill"

    def _told(self):
        """What the last program has printed."""
        return self._log.read_bytes()[self._begun :].decode(errors="replace")[-1500:]

    def _family(self):
        """What the programs of this round have left running."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                if self._token.encode() in environment.split(b"\0"):
                    found.append(process.pid)
        return found

    # Ways to hit it: each returns the exit code, or -SIGKILL where it has ended for that, and
    # whether it was hit.

    def step(self):
        """At a step of a tick, by itself."""
        area, step = self._rng.choice(self._pair.steps)
        number = 1 if (area, step) in ONCE else self._rng.randint(1, FIRST_TICKS)
        with self._started(f"{area}:{step}:{number}") as program:
            code = self._end_of(program)
        return code, code == -signal.SIGKILL

    def instant(self):
        """At any time."""
        with self._started() as program:
            time.sleep(self._rng.uniform(0, self._pair.seconds))
            program.kill()
            code = program.wait()
        return code, code == -signal.SIGKILL

    def worker(self):
        """A worker: its keys go on in another one, or the program ends with an error."""
        with self._started() as program:
            until_sync(
                lambda: program.poll() is not None or Embedded(program.pid).processes()["worker"],
                *(HANGS, lambda: f"a worker of the program {program.pid}"),
            )
            time.sleep(self._rng.uniform(0, self._pair.seconds))
            workers = Embedded(program.pid).processes()["worker"]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._rng.choice(workers), signal.SIGKILL)
            code = self._end_of(program)
        ended = code == 1 and "WorkerDied" in self._told()
        return -signal.SIGKILL if ended else code, bool(workers)

    def stop(self):
        """The program by SIGTERM: it makes a last tick, and goes on when it is started again."""
        with self._started() as program:
            time.sleep(self._rng.uniform(0, self._pair.seconds))
            program.send_signal(signal.SIGTERM)
            code = self._end_of(program)
        # Behind its end it does not listen any more.
        code = STOPPED if code == -signal.SIGTERM else code
        return code, code == STOPPED

    def server(self):
        """The server, which is started again; the program goes on, or is started again too."""
        server = self._sink.server or self._source.server
        with self._started() as program:
            time.sleep(self._rng.uniform(0, self._pair.seconds))
            hit = program.poll() is None
            server.kill()
            server.start()
            code = self._end_of(program)
        return -signal.SIGKILL if code == 1 else code, hit

    # What came of it.

    def _compare(self, outcome):
        found = self._sink.found()
        events = self._in_order(found, outcome)
        should = expected(events)
        came = collections.defaultdict(list)
        for result in found:
            came[result["k"]].append(tuple(sorted(result.items())))
        for key in came.keys() | should.keys():
            results = came[key]
            if not self._pair.exact:
                once = list(dict.fromkeys(results))
                outcome.again += len(results) - len(once)
                results = once
            wanted = [tuple(sorted(result.items())) for result in should.get(key, ())]
            outcome.compare(results, wanted)
        letters = self._letters.read_bytes().splitlines() if self._letters.exists() else ()
        values = {json.loads(letter)["value"]["v"] for letter in letters}
        outcome.lost += len(refused(events) - values)
        outcome.wrong += len(values - refused(self._events))
        looked = CliRunner().invoke(inspect, [self._checkpoint, "--json"])
        outcome.left += json.loads(looked.stdout)["keys"]
        outcome.wrong += CliRunner().invoke(verify, [self._checkpoint]).exit_code != 0

    def _in_order(self, found, outcome):
        """The events that should have been seen, in the order in which they were."""
        if self._pair.ordered:
            return self._events
        by_value = {event["v"]: event for event in self._events}
        seen = [result["v"] for result in found if result["what"] == "sees"]
        if self._pair.again:
            outcome.again += len(seen) - len(set(seen))
        else:
            seen = list(dict.fromkeys(seen))
        missing = by_value.keys() - set(seen)
        if self._pair.forgets:
            outcome.gone += len(missing - self._journalled)
            missing &= self._journalled
        return [by_value[value] for value in (*seen, *sorted(missing))]


def _journalled(path):
    """The values of the events in the journal of a checkpoint."""
    values = set()
    for file in (path / "journal").glob("*.log"):
        with contextlib.suppress(journal_file.Damaged):  # of a write that was not finished
            for frame in journal_file.read(file.read_bytes()):
                _, packed = _core.loads(frame.payload, False)
                values |= {_core.loads(item, False)[2]["v"] for item in packed}
    return values


HOW = {
    how.__name__: how for how in (Round.step, Round.instant, Round.worker, Round.stop, Round.server)
}


def survive(pair, mode, how, kills, servers, seed):
    """Kill so often, and tell what came of it."""
    outcome, rng = Survival(), random.Random(seed)
    while outcome.runs < kills and not outcome.failed:
        with tempfile.TemporaryDirectory(prefix="velo-survival-") as folder:
            Round(pair, mode, servers, Path(folder), rng).run(
                how, min(kills - outcome.runs, MOST), outcome
            )
    return outcome
