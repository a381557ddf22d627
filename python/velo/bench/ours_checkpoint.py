"""velo with a checkpoint. Each function gives figures by name."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from velo import StreamFn, _core, connect, stream_fn
from velo._checkpoint.checkpoint import Change, Checkpoint
from velo.bench.connect_kafka import Job, measured
from velo.bench.floors import Measured
from velo.bench.ours import Mode
from velo.connect import Record

__all__ = ["kafka", "moving", "restart", "size", "throughput", "unloading", "uploads"]

EVERY = 1.0  # seconds between two ticks
BATCH = 1_000
LOOK = 0.001  # seconds
STORED = 50_000  # keys that are put into a checkpoint at a time

_Events = Iterator[dict[str, Any]]


@stream_fn
async def tally(payments: AsyncIterator[Any], state: dict[str, Any]) -> AsyncIterator[int]:
    """Count the payments of a user, and add them up."""
    async for payment in payments:
        state["count"] = state.get("count", 0) + 1
        state["total"] = state.get("total", 0.0) + payment["amount"]
        yield state["count"]


@stream_fn
async def spending(
    payments: AsyncIterator[dict[str, Any]], state: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    """Do the job of `connect` with a state that lasts."""
    async for payment in payments:
        count = state["count"] = state.get("count", 0) + 1
        total = state["total"] = state.get("total", 0.0) + payment["amount"]
        result = {"user": payment["user"], "count": count, "total": total}
        if count == 1:
            result["began"] = time.time()
        yield result


def _payment(user: int, number: int) -> dict[str, Any]:
    return {"user": user, "amount": number + 0.5, "count": number % 10, "ok": True}


class _Source:
    """Events in batches, which `phases` gives one after the other."""

    name = "bench"

    def __init__(self, phases: Callable[[], AsyncIterator[_Events]]) -> None:
        self._phases = phases

    def seek(self, positions: Mapping[Any, Any]) -> None:
        """Begin anew."""

    async def __aiter__(self) -> AsyncIterator[list[Record]]:
        """Give the events."""
        number = 0
        async for events in self._phases():
            while batch := [
                Record(event, partition=0, position=number + index)
                for index, event in zip(range(BATCH), events, strict=False)
            ]:
                number += len(batch)
                yield batch

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Keep nothing."""


class _Sink:
    """Counts results."""

    name = "bench"

    def __init__(self) -> None:
        self._count = 0

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Count them."""
        self._count += len(results)

    async def flush(self) -> None:
        """Have nothing to do."""

    async def mark(self) -> int:
        """Give the number of results."""
        return self._count

    async def rewind(self, mark: int | None) -> None:
        """Have nothing to take back."""


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="velo-bench-")


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - figures tell nobody that they have changed
        await asyncio.sleep(LOOK)


async def _handled(run: Any, count: int) -> float:
    """Wait until there are so many results; the time."""
    await _until(lambda: run.figures.results >= count)
    return time.perf_counter()


def _size(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).iterdir())


def _newest(store: Path) -> Path:
    return max(store.glob("commit-*"))


async def _stored(path: str, keys: int) -> None:
    """Make a checkpoint of so many keys."""
    checkpoint = Checkpoint.open(path, "tally")
    state = _core.dumps({"count": 1, "total": 0.5})
    try:
        for first in range(0, keys, STORED):
            some = range(first, min(first + STORED, keys))
            await checkpoint.commit(checkpoint.epoch + 1, dict.fromkeys(some, state), {}, {})
    finally:
        checkpoint.close()


def _ready(mode: Mode, workers: int | None, **options: Any) -> StreamFn[Any, Any]:
    return tally.options(mode=mode, workers=workers, **options)


def throughput(
    mode: Mode, workers: int | None, keys: int, touched: int, count: int, checkpoint: bool
) -> Measured:
    """Give the rate of events of keys that are all open; each second other ones have some."""

    async def run(path: str) -> Measured:
        times: list[float] = []

        async def phases() -> AsyncIterator[_Events]:
            yield (_payment(user, 0) for user in range(keys))
            await _handled(connected, keys)
            await _until(lambda: not checkpoint or connected.figures.saved >= keys)
            times.append(time.perf_counter())
            yield some(times[0])
            times.append(await _handled(connected, keys + count))
            connected.stop()

        def some(began: float) -> _Events:
            for number in range(count):
                if number % BATCH == 0:
                    first = int(time.perf_counter() - began) * touched
                yield _payment((first + number * 7919 % touched) % keys, number)

        fn = _ready(mode, workers)
        connected = fn.keyed(_Source(phases), key="user")
        kept = {"checkpoint": path, "checkpoint_every": EVERY} if checkpoint else {}
        await connected.into(_Sink(), **kept)  # type: ignore[arg-type]
        return {"rate": count / (times[1] - times[0])}

    with _folder() as path:
        return asyncio.run(run(path))


def restart(mode: Mode, workers: int | None, keys: int) -> Measured:
    """Go on with a checkpoint of so many keys: seconds until 1,000 of them have had an event."""
    users = random.Random(keys).choices(range(keys), k=BATCH)

    async def run(path: str) -> Measured:
        await _stored(path, keys)
        took = 0.0

        async def phases() -> AsyncIterator[_Events]:
            nonlocal took
            yield (_payment(user, 1) for user in users)
            took = await _handled(connected, BATCH) - began
            connected.stop()

        fn = _ready(mode, workers)
        async for _ in fn.keyed([_payment(0, 0)], key="user"):
            pass  # its workers are there
        began = time.perf_counter()
        connected = fn.keyed(_Source(phases), key="user")
        await connected.into(_Sink(), checkpoint=path, checkpoint_every=EVERY)
        return {"s": took}

    with _folder() as path:
        return asyncio.run(run(path))


def unloading(mode: Mode, workers: int | None, keys: int, most: int | None, count: int) -> Measured:
    """Give the rate with a checkpoint of so many keys, of which `most` are in memory; None: all.

    Of ten events, nine are of one key in a hundred, and one is of any key.
    """
    some = random.Random(keys)
    busy, open_first = keys // 100, keys if most is None else most

    async def run(path: str) -> Measured:
        await _stored(path, keys)
        times: list[float] = []

        async def phases() -> AsyncIterator[_Events]:
            yield (_payment(user, 0) for user in range(open_first))
            await _handled(connected, open_first)
            await _until(lambda: connected.figures.saved >= open_first)
            times.append(time.perf_counter())
            yield (
                _payment(some.randrange(keys if number % 10 == 0 else busy), number)
                for number in range(count)
            )
            times.append(await _handled(connected, open_first + count))
            connected.stop()

        fn = _ready(mode, workers, max_concurrent=most)
        connected = fn.keyed(_Source(phases), key="user")
        await connected.into(
            _Sink(),
            checkpoint=path,
            checkpoint_every=EVERY,
            keys="end" if most is None else "unload",
        )
        return {"rate": count / (times[1] - times[0])}

    with _folder() as path:
        return asyncio.run(run(path))


def size(keys: int, first: int, ticks: int) -> Measured:
    """Give the size of the folder after so many ticks, and after the first ones of them.

    All keys change between two ticks.
    """

    async def run(path: str) -> Measured:
        sizes: Measured = {}

        async def phases() -> AsyncIterator[_Events]:
            done = epoch = 0
            while (epoch := connected.figures.epoch) < ticks:
                if epoch >= first and not sizes:
                    sizes["first KiB"] = _size(path) / 1024
                yield (_payment(user, epoch) for user in range(keys))
                done += keys
                await _handled(connected, done)
                await _until(lambda epoch=epoch: connected.figures.epoch > epoch)  # type: ignore[misc]
            sizes["KiB"] = _size(path) / 1024
            connected.stop()

        connected = _ready("inline", None).keyed(_Source(phases), key="user")
        await connected.into(_Sink(), checkpoint=path, checkpoint_every=LOOK)
        return sizes

    with _folder() as path:
        return asyncio.run(run(path))


def moving(keys: int, length: int, fetched: bool) -> Measured:
    """Move a checkpoint of so many keys to another machine: seconds until it is open there.

    Also the seconds that the cores worked for that, and the size of what is fetched.

    Args:
        keys: How many keys.
        length: The bytes of each state, about.
        fetched: Whether the other machine has an empty cache; otherwise it has the last tick.

    """
    rng = random.Random(keys)

    async def run(path: str) -> Measured:
        url = Path(path, "store").as_uri()
        checkpoint = Checkpoint.open(f"{url}?cache={path}/first", "tally")
        try:
            for first in range(0, keys, STORED):
                changes: dict[Hashable, Change] = {
                    user: _core.dumps({"count": user, "text": rng.randbytes(length // 2).hex()})
                    for user in range(first, min(first + STORED, keys))
                }
                await checkpoint.commit(checkpoint.epoch + 1, changes, {}, {})
        finally:
            checkpoint.close()
        cache = f"{path}/second" if fetched else f"{path}/first"
        began, worked = time.perf_counter(), time.process_time()
        checkpoint = Checkpoint.open(f"{url}?cache={cache}", "tally")
        took, worked = time.perf_counter() - began, time.process_time() - worked
        found = sum(state is not None for state in checkpoint.load(list(range(keys))))
        checkpoint.close()
        if found != keys:
            raise RuntimeError(f"{found} of {keys} keys have moved")
        return {"s": took, "core s": worked, "KiB": _size(f"{path}/store") / 1024}

    with _folder() as path:
        return asyncio.run(run(path))


def uploads(touched: int, length: int, ticks: int, remote: bool) -> Measured:
    """Give what a tick costs that changes so many keys.

    Milliseconds, those that the cores worked for it, and KiB that are uploaded.
    """
    rng = random.Random(touched)

    async def run(path: str) -> Measured:
        store = Path(path, "store")
        where = f"{store.as_uri()}?cache={path}/cache" if remote else f"{path}/cache"
        checkpoint = Checkpoint.open(where, "tally")
        times, works, sizes = [], [], []
        try:
            for epoch in range(1, ticks + 1):
                changes: dict[Hashable, Change] = {
                    user: _core.dumps({"count": epoch, "text": rng.randbytes(length // 2).hex()})
                    for user in range(touched)
                }
                began, worked = time.perf_counter(), time.process_time()
                await checkpoint.commit(epoch, changes, {0: epoch}, {})
                times.append(time.perf_counter() - began)
                works.append(time.process_time() - worked)
                if remote:
                    sizes.append(_newest(store).stat().st_size / 1024)
        finally:
            checkpoint.close()
        figures = {"ms": statistics.median(times) * 1000}
        figures["core ms"] = statistics.mean(works) * 1000
        return figures | {"KiB": statistics.median(sizes)} if remote else figures

    with _folder() as path:
        return asyncio.run(run(path))


def kafka(mode: Mode, workers: int | None, servers: str, source: str, count: int) -> Measured:
    """Do the job of `connect` with a checkpoint: results in transactions of Kafka."""

    async def run(job: Job, path: str) -> None:
        payments = connect.kafka(job.servers, job.source, group=job.group, until="end")
        fn = spending.options(mode=mode, workers=workers)
        await fn.keyed(payments, key="user").into(
            connect.kafka(job.servers, job.results), checkpoint=path, checkpoint_every=EVERY
        )

    with _folder() as path:
        return measured(servers, source, count, lambda job: asyncio.run(run(job, path)))
