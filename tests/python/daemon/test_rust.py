"""A client in Rust beside clients in Python."""

import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict

import pytest

from helpers import HANG, ROOT, environment, until_sync, write_script
from rust_examples import example

# Building the examples may take minutes, when nobody has built them before.
pytestmark = pytest.mark.timeout(600)

EVENTS = 500
FUNCTIONS = """
    import asyncio
    from velo import stream_fn

    @stream_fn
    async def totals(events):
        total = 0
        async for event in events:
            await asyncio.sleep(0.001)
            total += event
            yield total
        yield {"in all": total}
"""
PYTHON = """
    import asyncio, json, sys
    from slow import totals

    async def main():
        keep = {"mode": "process", "recover": "replay", "max_restarts": 100}
        events = [int(line) for line in sys.stdin]
        async with totals.options(**keep).open() as stream:
            async for total in stream.feed(events):
                print(total, flush=True)
            await stream.end()
            async for last in stream:
                print(json.dumps(last), flush=True)

    asyncio.run(main())
"""


def wait(condition, what):
    """Waits for as long as a slow machine may take."""
    until_sync(condition, HANG, lambda: what())


class Client:
    """A program that does the same job over and over; when it is killed, it is started again."""

    def __init__(self, name, command, events, excuses):
        self.name, self.command, self.excuses = name, command, excuses
        self.input = "".join(f"{event}\n" for event in events)
        self.expected = list(itertools.accumulate(events))
        self.expected.append({"in all": self.expected[-1]})
        self.lines, self.process = [], None
        self.rounds, self.cut, self.wrong = 0, 0, []
        self.stopping = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopping and not self.wrong:
            try:
                self.one_round()
            except Exception as error:
                self.wrong.append(repr(error))

    def one_round(self):
        self.lines = lines = []
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(self.command, env=environment(), text=True, **pipes) as process:
            self.process = process
            # Whoever is killed at once does not read it.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(self.input)
                process.stdin.close()
            for line in process.stdout:
                lines.append(line)
            errors = process.stderr.read()
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # it was killed as it wrote this one
        results = [json.loads(line) for line in lines]
        if process.returncode == 0:
            self.check(results == self.expected, f"{len(results)} results: {results[-3:]}")
            self.rounds += 1
            return
        self.check(results == self.expected[: len(results)], f"cut short: {results[-3:]}")
        killed = process.returncode == -signal.SIGKILL
        self.check(killed or any(excuse in errors for excuse in self.excuses), errors)
        self.cut += 1

    def check(self, right, what):
        if not right:
            self.wrong.append(f"{self.name}: {what}")

    def is_in_the_middle(self):
        return 20 < len(self.lines) < EVENTS - 20

    def kill_in_the_middle(self):
        cut = self.cut
        while self.cut == cut:
            wait(self.is_in_the_middle, self.state)
            rounds = self.rounds
            self.process.kill()
            wait(lambda: self.cut > cut or self.rounds > rounds, self.state)  # noqa: B023

    def state(self):
        return self.name, self.rounds, self.cut, len(self.lines), self.wrong


@pytest.fixture
def clients(tmp_path, daemon):
    """Two clients in Python and one in Rust, busy."""
    write_script(tmp_path, FUNCTIONS, "slow.py")
    script = str(write_script(tmp_path, PYTHON, "client.py"))
    lines = [example("lines"), str(daemon.path), "slow:totals", str(tmp_path)]
    # While there is no supervisor.
    nobody = ["no supervisor listens", "the supervisor is gone", "has hung up"]
    made = [
        Client("python", [sys.executable, script], range(1, EVENTS + 1), nobody),
        Client("other", [sys.executable, script], range(2, 2 * EVENTS + 2, 2), nobody),
        # A stream in Rust has no journal: it ends with its worker, and its program says so.
        Client("rust", lines, range(3, 3 * EVENTS + 3, 3), [*nobody, "the worker of stream"]),
    ]
    yield made
    for client in made:
        client.stopping = True
    for client in made:
        client.thread.join(HANG)
        if client.thread.is_alive():
            client.process.kill()
            client.thread.join()


def test_clients_of_two_languages_are_killed_in_turn_and_all_results_are_right(
    daemon, daemon_at, clients
):
    def everything():
        return [client.state() for client in clients]

    def all_go_on():
        """Everybody does a whole job, and nobody has got anything wrong."""
        before = [client.rounds for client in clients]
        wait(
            lambda: (
                any(client.wrong for client in clients)
                or all(c.rounds > before for c, before in zip(clients, before, strict=True))
            ),
            everything,
        )
        assert not any(client.wrong for client in clients), everything()

    def all_are_busy():
        busy = [client.is_in_the_middle() for client in clients]
        return busy[2] and any(busy[:2])

    all_go_on()
    for client in clients:
        client.kill_in_the_middle()
        all_go_on()
    wait(all_are_busy, everything)
    for worker in daemon.status()["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    all_go_on()
    wait(all_are_busy, everything)
    daemon.kill()
    daemon = daemon_at("--workers", 2)
    all_go_on()
    assert [client.cut > 0 for client in clients] == [True] * 3

    for client in clients:
        client.stopping = True
    for client in clients:
        client.thread.join(HANG)
        assert not client.thread.is_alive(), everything()
        assert not client.wrong, everything()

    def nothing_is_left():
        state = daemon.status()
        busy = [worker for worker in state["workers"] if worker["residents"] or worker["links"]]
        return not busy and [c["pid"] for c in state["clients"]] == [os.getpid()]

    wait(nothing_is_left, daemon.status)
    assert daemon.stop() == 0
    assert not daemon.seen_alive()
    assert not daemon.path.exists()


def test_the_example_counts_what_python_counts(tmp_path, daemon):
    """The flights of the busiest aircraft: by the example in Rust, and by the function itself."""
    sys.path.append(str(ROOT / "examples"))
    try:
        import data
        import flights
    except ImportError as error:
        pytest.skip(f"the data of the examples is not there: {error}")
    finally:
        sys.path.remove(str(ROOT / "examples"))
    rows = list(csv.DictReader(data.flights().read_text().splitlines()[:100_000]))
    tails = Counter(row["tailnum"] for row in rows)
    busiest = {tail for tail, _ in tails.most_common(51)}  # one of them is no aircraft at all
    rows = [row for row in rows if row["tailnum"] in busiest]
    small = tmp_path / "flights.csv"
    with small.open("w", newline="") as file:
        out = csv.DictWriter(file, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    aircraft = defaultdict(list)
    numbers = ("dep_delay", "arr_delay", "air_time", "minute")
    for row in rows:
        if row["tailnum"]:
            plain = row | {name: int(row[name]) if row[name] else None for name in numbers}
            aircraft[row["tailnum"]].append(plain)
    counts = Counter()
    for events in aircraft.values():
        counts.update(found["why"] for found in flights.turnarounds.run_sync(events))
    done = subprocess.run(
        [example("feed"), str(daemon.path), str(small)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = {
        name: int(count)
        for count, name in (line.split(None, 1) for line in done.stdout.splitlines())
    }
    assert said == {"aircraft": len(aircraft), **counts}
    assert sum(counts.values()) > 100
