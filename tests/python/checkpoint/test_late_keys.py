"""The two rules of the cut: what becomes of records and results of a key that gives no snapshot."""

import asyncio
import contextlib
import os
from functools import partial

import pytest

from checkpoints import opened
from helpers import HANG
from replayed import Again, TakingBack, by_key, expected, sequence
from velo import stream_fn
from velo._api import ticks
from velo._checkpoint.checkpoint import Checkpoint
from velo._diagnostics import failpoints
from velo.connect import Record
from velo.connect.memory import MemorySink, MemorySource


class Crash(Exception):
    """The process dies here."""


@stream_fn
async def gated(events, state):
    """Awaits the file that an event names, after a result, and counts events."""
    async for event in events:
        yield "begins", event["v"]
        while "gate" in event and not os.path.exists(event["gate"]):
            await asyncio.sleep(0.001)
        state["n"] = state.get("n", 0) + 1
        yield state["n"], event["v"]


def results(*values):
    """What `gated` gives for the values of one key."""
    pairs = ([("begins", value), (n, value)] for n, value in enumerate(values, 1))
    return [result for pair in pairs for result in pair]


class Placed(Again):
    """The same with positions of its own."""

    def __init__(self, places, *args):
        super().__init__(*args)
        self._places = places

    async def __aiter__(self):
        async for records in super().__aiter__():
            yield [
                Record(record.value, partition="p", position=place)
                for record, place in zip(records, self._places, strict=True)
            ]


class Until:
    """A run whose source dies, after it has given all its records, once `dies` is set."""

    def __init__(self, mode, events, sink, path, *, source=Again, workers=None, **settings):
        self.ticks = 0
        self.dies = asyncio.Event()
        self.stored = []  # what the sink had at the last tick that was stored
        self._sink = sink
        failpoints.hook = self._reached
        self.source = source({"p": [*events, {"k": "never", "v": 0}]}, len(events), self._pauses)
        fn = gated.options(mode=mode, workers=workers)
        run = fn.keyed(self.source, key="k", **settings)
        self.task = asyncio.ensure_future(run.into(sink, checkpoint=path, checkpoint_every=0.01))

    def _reached(self, _area, step):
        self.ticks += step == 1
        if step == 4:
            self.stored = list(self._sink.kept)

    async def _pauses(self, number):
        if number == 1:
            await self.dies.wait()
            raise Crash

    async def until(self, true):
        while not true():
            assert not self.task.done(), self.task.result()
            await asyncio.sleep(0.001)

    async def die(self):
        self.dies.set()
        with pytest.raises(Crash):
            await self.task
        failpoints.hook = None


def stored(path):
    """Positions and positions ahead, as the checkpoint has them."""
    store = Checkpoint.open(path, "gated")
    try:
        return store.positions, {p: sorted(ahead) for p, ahead in store.ahead.items()}
    finally:
        store.close()


async def test_the_stored_position_is_one_that_all_keys_have_absorbed(mode, tmp_path):
    path, sink = tmp_path / "checkpoint", TakingBack()
    gate = {"gate": str(tmp_path / "gate")}
    events = [{"k": 1, "v": 1}, {"k": 0, "v": 2, **gate}, {"k": 1, "v": 3}, {"k": 0, "v": 4}]
    events += [{"k": 2, "v": 5}]
    run = Until(mode, events, sink, path)
    await run.until(lambda: {(1, (2, 3)), (2, (1, 5))} <= set(run.stored))
    await run.die()
    assert stored(path) == ({"p": 0}, {"p": [2, 4]})
    assert 0 not in by_key(sink.kept)
    (tmp_path / "gate").touch()
    sink = TakingBack(sink.kept)
    await gated.options(mode=mode).keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == {0: results(2, 4), 1: results(1, 3), 2: results(5)}


@pytest.mark.parametrize(
    "places", [[-5, 7, 8, 2**62], [1, 2, 2**64, 3], [0, 1, True, 2], [1, 2, "x-1", ("x", 2)]]
)
async def test_positions_are_stored_as_the_source_gives_them(mode, places, tmp_path):
    path, sink = tmp_path / "checkpoint", TakingBack()
    gate = {"gate": str(tmp_path / "gate")}
    events = [{"k": 1, "v": 1}, {"k": 0, "v": 2, **gate}, {"k": 1, "v": 3}, {"k": 1, "v": 4}]
    run = Until(mode, events, sink, path, source=partial(Placed, places))
    await run.until(lambda: (1, (3, 4)) in run.stored)
    await run.die()
    with contextlib.closing(Checkpoint.open(path, "gated")) as store:
        assert (store.positions, store.ahead) == ({"p": places[0]}, {"p": places[2:]})
        assert [type(place) for place in store.ahead["p"]] == [type(place) for place in places[2:]]


async def test_a_record_that_was_handled_without_a_snapshot_comes_again(mode, tmp_path):
    path, sink = tmp_path / "checkpoint", TakingBack()
    gate = {"gate": str(tmp_path / "gate")}
    # Key 0 handles its first record and goes on to the second one at once, before any tick.
    events = [{"k": 0, "v": 1}, {"k": 0, "v": 2, **gate}, {"k": 1, "v": 3}]
    run = Until(mode, events, sink, path)
    await run.until(lambda: (1, (1, 3)) in run.stored)
    await run.die()
    positions, ahead = stored(path)
    has = by_key(sink.kept).get(0, [])
    if positions:  # a tick came between the two records
        assert (positions, has) == ({"p": 0}, results(1))
    else:
        assert has == []
    assert ahead == {"p": [2]}
    (tmp_path / "gate").touch()
    sink = TakingBack(sink.kept)
    await gated.options(mode=mode).keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == {0: results(1, 2), 1: results(3)}


async def test_a_run_that_is_stopped_stores_all_that_it_has_read(mode, monkeypatch, tmp_path):
    for name in ("_PATIENCE", "_LEAST_PATIENCE"):  # a worker has no time for snapshots
        monkeypatch.setattr(ticks, name, 0.0)
    events = [{"k": n % 7, "v": n} for n in range(50)]

    async def stops(number):
        if number == 1:
            run.stop()

    run = gated.options(mode=mode).keyed(Again({"p": events * 2}, len(events), stops), key="k")
    sink = TakingBack()
    await run.into(sink, checkpoint=tmp_path, checkpoint_every=1000)
    assert stored(tmp_path) == ({"p": 49}, {})
    assert by_key(sink.kept) == {key: results(*range(key, 50, 7)) for key in range(7)}


async def test_results_behind_a_snapshot_between_two_events_are_held_back(mode, tmp_path):
    path, sink = tmp_path / "checkpoint", TakingBack()
    first, second = tmp_path / "first", tmp_path / "second"
    events = [{"k": 0, "v": 1, "gate": str(first)}, {"k": 0, "v": 2, "gate": str(second)}]
    events += [{"k": 1, "v": 3}]
    # One worker is asked for snapshots in the order of the keys: when key 1 has given its own, key
    # 0 has been asked, and gives it behind its first event.
    run = Until(mode, events, sink, path, workers=1)
    await run.until(lambda: (1, (1, 3)) in run.stored)
    first.touch()
    await run.until(lambda: (0, (1, 1)) in run.stored)
    await run.die()
    assert by_key(sink.kept)[0] == results(1), "not what the second event has begun with"
    assert stored(path) == ({"p": 0}, {"p": [2]})
    second.touch()
    sink = TakingBack(sink.kept)
    await gated.options(mode=mode).keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == {0: results(1, 2), 1: results(3)}


async def test_positions_ahead_outlive_a_run_that_does_not_come_to_them(mode, tmp_path):
    path, sink = tmp_path / "checkpoint", TakingBack()
    gate = {"gate": str(tmp_path / "gate")}
    events = [{"k": 0, "v": 1, **gate}, {"k": 1, "v": 2}, {"k": 1, "v": 3}]
    run = Until(mode, events, sink, path)
    await run.until(lambda: (1, (2, 3)) in run.stored)
    await run.die()
    (tmp_path / "gate").touch()
    # The second run gives the first record, and dies after a tick.
    sink = TakingBack(sink.kept)
    run = Until(mode, events[:1], sink, path)
    run.source.partitions["p"] = events
    await run.until(lambda: (0, (1, 1)) in run.stored)
    await run.die()
    assert stored(path) == ({"p": 0}, {"p": [1, 2]})
    sink = TakingBack(sink.kept)
    await gated.options(mode=mode).keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == {0: results(1), 1: results(2, 3)}


async def test_records_that_an_earlier_run_has_handled_are_not_counted(mode, tmp_path):
    with opened(tmp_path, "sequence") as checkpoint:
        await checkpoint.commit(1, {}, {"p": 4}, {"p": [6, 8]})
    events, sink = [{"k": 0, "v": number} for number in range(10)], TakingBack()
    run = sequence.options(mode=mode).keyed(Again({"p": events}), key="k")
    figures = await run.into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected([events[number] for number in (5, 7, 9)])
    assert figures.read == 3


async def test_positions_ahead_of_records_that_wait_outlive_ticks(mode, tmp_path):
    path, sink = tmp_path / "checkpoint", TakingBack()
    gate = {"gate": str(tmp_path / "gate")}
    events = [{"k": 0, "v": 1, **gate}, *({"k": 1, "v": value} for value in (2, 3, 4))]
    run = Until(mode, events, sink, path)
    await run.until(lambda: (1, (3, 4)) in run.stored)
    await run.die()
    # They come again, and wait behind the first one while ticks are made.
    sink = TakingBack(sink.kept)
    run = Until(mode, events, sink, path, max_pending=1)
    await run.until(lambda: run.source.given == 4)
    ticks = run.ticks
    await run.until(lambda: run.ticks > ticks + 1)
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    failpoints.hook = None
    assert stored(path) == ({}, {"p": [1, 2, 3]})
    (tmp_path / "gate").touch()
    sink = TakingBack(sink.kept)
    await gated.options(mode=mode).keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == {0: results(1), 1: results(2, 3, 4)}


class Endless(MemorySource):
    """Gives its records, and goes on waiting for more."""

    async def __aiter__(self):
        async for records in super().__aiter__():
            yield records
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("source", "what"),
    [(MemorySource, "the end of all keys"), (Endless, "the records in hand")],
)
async def test_keys_that_hold_up_the_end_are_waited_for_aloud(
    source, what, mode, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr("velo._api.patience._LOOK_AFTER", 0.01)
    gate = tmp_path / "gate"
    source = source({"p": [{"k": 1, "v": 1, "gate": str(gate)}]})
    run = gated.options(mode=mode).keyed(source, key="k")
    task = asyncio.ensure_future(run.into(MemorySink(), checkpoint=tmp_path / "checkpoint"))
    async with asyncio.timeout(HANG):
        while f"for {what} of `gated`" not in caplog.text:
            if isinstance(source, Endless) and run.figures.read:
                run.stop()
            await asyncio.sleep(0.001)
        gate.touch()
        await task
