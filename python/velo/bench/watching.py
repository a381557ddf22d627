"""The cost of watching streams, for the streams. Returns figures by name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from velo import Stream
from velo.bench.floors import Measured
from velo.bench.functions import events, passthrough
from velo.bench.processes import processor_time

__all__ = ["watched"]

# Looks at idle streams, to measure the cost of one for the worker.
LOOKS = 50
# Seconds that a supervisor may take to be ready.
PATIENCE = 30.0


def watched(event: str, streams: int, spells: int, spell: float) -> Measured:
    """Feed one stream of a standalone supervisor, in turn unwatched and watched.

    Returns `rate` while a program looks at all of its streams once in each spell, and `alone`
    without a look, in events per second; `work` and `work_alone` are events per second of processor
    time of client and worker, whatever else the machine does meanwhile. `ratio` and `work_ratio`
    are medians over pairs of neighbouring spells. `cost` is the microseconds of processor time
    that a look takes from the worker.

    Args:
        event: The event that is sent through the stream.
        streams: The number of open streams, all but one of them idle.
        spells: The number of spells of each kind.
        spell: The seconds that a spell lasts.

    """

    async def run(watcher: _Watcher) -> Measured:
        async with contextlib.AsyncExitStack() as stack:
            fn = passthrough.options(mode="process", workers=1)
            opened = [await stack.enter_async_context(fn.open()) for _ in range(streams)]
            for stream in opened:
                await stream.send(1)
                await stream.recv()
            await _feed(opened[0], event, spell)  # a ring of its final size
            cost, worker = _cost(watcher)
            rates: dict[bool, list[float]] = {False: [], True: []}
            work: dict[bool, list[float]] = {False: [], True: []}
            for number in range(2 * spells):
                # The order alternates, so that a machine that gets slower favours neither kind.
                looked_at = number % 4 in (1, 2)
                if looked_at:
                    watcher.look()
                began = processor_time(os.getpid()) + processor_time(worker)
                got, rate = await _feed(opened[0], event, spell)
                took = processor_time(os.getpid()) + processor_time(worker) - began
                rates[looked_at].append(rate)
                work[looked_at].append(got / took * 1e9)
                if looked_at:
                    assert watcher.seen()["streams"] == streams
        return {
            "rate": statistics.median(rates[True]),
            "alone": statistics.median(rates[False]),
            "ratio": _ratio(rates),
            "work": statistics.median(work[True]),
            "work_alone": statistics.median(work[False]),
            "work_ratio": _ratio(work),
            "cost": cost,
        }

    with tempfile.TemporaryDirectory() as folder, _supervisor(Path(folder, "s.sock")) as path:
        os.environ["VELO_SUPERVISOR"] = path
        with _Watcher(path) as watcher:
            return asyncio.run(run(watcher))


def _ratio(figures: dict[bool, list[float]]) -> float:
    pairs = zip(figures[True], figures[False], strict=True)
    return statistics.median(watched / alone for watched, alone in pairs)


def _cost(watcher: _Watcher) -> tuple[float, int]:
    """Return the microseconds that a look at idle streams takes from their worker, and its pid."""
    watcher.look()
    while not (seen := watcher.seen())["complete"]:
        watcher.look()
    before = processor_time(worker := seen["worker"])
    for _ in range(LOOKS):
        watcher.look()
        watcher.seen()
    return (processor_time(worker) - before) / LOOKS / 1e3, worker


async def _feed(stream: Stream[object, object], event: str, seconds: float) -> tuple[int, float]:
    """Feed for the given seconds; return the number of results, and the results per second."""
    batch = events(event, 10_000)
    begin = time.perf_counter()
    end = begin + seconds
    got = 0

    def source() -> Iterator[object]:
        while time.perf_counter() < end:
            yield from batch

    async for _ in stream.feed(source()):
        got += 1
    return got, got / (time.perf_counter() - begin)


@contextlib.contextmanager
def _supervisor(path: Path) -> Iterator[str]:
    """Run `velo supervisor start`, as its user would."""
    command = [sys.executable, "-m", "velo", "supervisor", "start", "--workers", "1"]
    log = path.with_suffix(".log")
    with log.open("wb") as said:
        process = subprocess.Popen([*command, "--socket", path], stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no supervisor: {log.read_text()[-500:]}")
            time.sleep(0.01)
        yield str(path)
    finally:
        process.terminate()
        process.wait()


class _Watcher:
    """A program that looks at all streams on request, as `velo top` does."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def look(self) -> None:
        """Ask the program for one look, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write("look\n")
        self._process.stdin.flush()

    def seen(self) -> dict[str, int]:
        """Wait until the program has looked; return the status that it got.

        The status has the pid of the `worker`, the number of `streams`, and whether the worker has
        named all of them: `complete`.
        """
        assert self._process.stdout is not None
        seen: dict[str, int] = json.loads(self._process.stdout.readline())
        return seen

    def __enter__(self) -> _Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Ask the supervisor at a path for its status at each line of input, and print it."""
    from velo.cli.supervisor.admin_connection import AdminConnection
    from velo.cli.supervisor.figures import Watcher

    watcher = Watcher(AdminConnection(sys.argv[1]))
    for _ in sys.stdin:
        state = watcher.look()
        seen = {
            "worker": state["workers"][0]["pid"],
            "streams": len(state["streams"]),
            "complete": watcher.complete,
        }
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
