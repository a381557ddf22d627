"""The soak: streams come and go, are cancelled and crash, and the machine stays as it was.

    python tests/chaos/soak.py --minutes 10 --plot docs/reliability

64 streams at a time are opened, fed, cancelled, killed and closed. Memory, descriptors, processes
and shared memory of the client and everything below it are sampled; the last half of the samples is
held against the first.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import os
import random
import signal
import time
from pathlib import Path

import psutil

import places
from phases import small
from velo.errors import WorkerDied
from work import account

__all__ = ["Sample", "Soak", "growth", "mapped"]

AT_A_TIME = 64
# This part of the samples is left out: caches and arenas still fill.
_WARM_UP = 0.2


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a client and its workers had at one moment.

    Attributes:
        seconds: Since the beginning.
        memory: Bytes, proportionally shared, of all processes together.
        descriptors: Open ones, of all processes together.
        processes: How many there are.
        segments: Shared-memory objects that are mapped, and velo's files in /dev/shm.
        events: How many have been handled so far.

    """

    seconds: float
    memory: int
    descriptors: int
    processes: int
    segments: int
    events: int


class Soak:
    """The churn, and what is seen of it."""

    def __init__(self, seconds, seed, every=1.0):
        """Churn for so long; take a sample `every` so many seconds."""
        self.samples = []
        self.events = self.opened = self.cancelled = self.crashed = self.wrong = 0
        self._seconds = seconds
        self._every = every
        self._rng = random.Random(seed)
        self._began = time.monotonic()
        # Without recovery, a crash is an error that somebody sees; with it, nothing.
        self._kinds = [account, account.options(recover="none")]

    async def run(self):
        """Churn."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_A_TIME):
                group.create_task(self._streams())
            group.create_task(self._killing())
            await self._sampling()

    def _over(self):
        # Without a crash or a cancellation, it has seen nothing.
        is_late = time.monotonic() - self._began > self._seconds
        return is_late and self.crashed > 0 and self.cancelled > 0

    async def _streams(self):
        while not self._over():
            self.opened += 1
            fn = self._rng.choice(self._kinds)
            end = self._rng.choices(("finish", "cancel", "leave"), (6, 1, 1))[0]
            events = small(self._rng, self._rng.choice((10, 100, 3000)))
            with contextlib.suppress(WorkerDied):
                await self._one(fn, events, end)
            await asyncio.sleep(0)

    async def _one(self, fn, events, end):
        async with contextlib.AsyncExitStack() as stack:
            stream = await stack.enter_async_context(fn.open())
            count = 0
            async for number, seen, _ in stream.feed(events):
                count += 1
                self.wrong += (number, seen) != (count - 1, count)
                if end == "leave" and count == len(events) // 2:
                    break
            self.events += count
            if end == "cancel":
                self.cancelled += 1
                with contextlib.suppress(ZeroDivisionError):
                    async with stack.pop_all():
                        raise ZeroDivisionError

    async def _killing(self):
        while not self._over():
            await asyncio.sleep(self._rng.uniform(0.2, 1.0))
            if workers := _below()["worker"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._rng.choice(workers), signal.SIGKILL)
                    self.crashed += 1

    async def _sampling(self):
        while not self._over():
            await asyncio.sleep(self._every)
            self.samples.append(self._sample())

    def _sample(self):
        memory = descriptors = processes = segments = 0
        for pid in (os.getpid(), *itertools.chain(*_below().values())):
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                memory += process.memory_full_info().pss
                descriptors += process.num_fds()
                processes += 1
                segments += mapped(pid)
        return Sample(
            time.monotonic() - self._began,
            memory,
            descriptors,
            processes,
            segments + len(places.segments()),
            self.events,
        )


def _below():
    """Velo's processes below this one. Others may be there too: the servers of other tests."""
    return places.Embedded(os.getpid()).processes()


def mapped(pid):
    """How many pieces of velo's shared memory a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return sum("memfd:velo" in line for line in maps.splitlines())


def growth(samples):
    """By how much the last third is above the first, of each figure: medians, as ratios."""
    samples = samples[int(len(samples) * _WARM_UP) :]
    third = max(1, len(samples) // 3)

    def median(part, name):
        values = sorted(getattr(sample, name) for sample in part)
        return values[len(values) // 2]

    names = ("memory", "descriptors", "processes", "segments")
    return {
        name: median(samples[-third:], name) / max(1, median(samples[:third], name))
        for name in names
    }


def plot(samples, folder):
    """Draw all figures over time, into `soak.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [sample.seconds / 60 for sample in samples]
    series = {
        "memory of all processes, MiB": [sample.memory / 2**20 for sample in samples],
        "open descriptors": [sample.descriptors for sample in samples],
        "processes": [sample.processes for sample in samples],
        "segments": [sample.segments for sample in samples],
        "events, millions": [sample.events / 1e6 for sample in samples],
    }
    figure, axes = pyplot.subplots(len(series), 1, figsize=(8, 9), sharex=True)
    for axis, (name, values) in zip(axes, series.items(), strict=True):
        axis.plot(minutes, values, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_title(name, loc="left", fontsize=9)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "soak.png", dpi=110)


def main():
    """Soak, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    soak = Soak(options.minutes * 60, options.seed)
    asyncio.run(soak.run())
    print(
        f"seed {options.seed}: {soak.opened:,} streams, {soak.events:,} events, "
        f"{soak.cancelled:,} cancelled, {soak.crashed:,} workers killed, {soak.wrong} results wrong"
    )
    for name, ratio in growth(soak.samples).items():
        print(f"{name}: {ratio:.3f} of what it was")
    if options.plot:
        plot(soak.samples, options.plot)


if __name__ == "__main__":
    main()
