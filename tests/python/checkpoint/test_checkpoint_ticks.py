"""Checkpoints: a run that is stopped, or dies at any step of a tick, and is started again."""

import asyncio
import os

import pytest

from replayed import Again, Committing, TakingBack, by_key, expected, sequence
from velo import stream_fn
from velo._diagnostics import failpoints
from velo.connect import Record
from velo.connect.memory import MemorySink

# Steps at which `reached` is called in a tick.
STEPS = range(1, 7)


class Crash(Exception):
    """The process dies here."""


@pytest.fixture
def crashes(monkeypatch):
    """Has the n-th tick that comes so far die at a step."""

    def at(step, number):
        left = [number]

        def hook(area, reached):
            if (area, reached) == ("tick", step):
                left[0] -= 1
                if left[0] == 0:
                    raise Crash(f"step {step}")

        monkeypatch.setattr(failpoints, "hook", hook)

    yield at
    failpoints.hook = None


def events_of(count, keys=7):
    return [{"k": (5 * n + n // 3) % keys, "v": n} for n in range(count)]


def split(events):
    """Two partitions with keys of their own."""
    return {
        "a": [event for event in events if event["k"] % 2],
        "b": [event for event in events if not event["k"] % 2],
    }


def remake(sink):
    """The sink as a new process has it."""
    kept = (sink.kept, sink.epochs) if isinstance(sink, Committing) else (sink.kept,)
    return type(sink)(*kept)


def prepare(mode, partitions, stop=None, **options):
    """A run whose source waits at every fourth batch until a tick has absorbed all before it.

    It is stopped before batch `stop`.
    """
    source = Again(partitions)
    connected = sequence.options(mode=mode, **options).keyed(source, key="k")
    first = sum(source.at.values())

    async def pauses(number):
        given = source.given
        while number % 4 == 3 and sum(at + 1 for at in source.committed.values()) < given + first:
            await asyncio.sleep(0.001)
        if number == stop:
            connected.stop()

    def seek(positions):
        nonlocal first
        source.committed.update(positions)
        Again.seek(source, positions)
        first = sum(source.at.values())

    source.pauses, source.seek = pauses, seek
    return connected


async def run(mode, partitions, sink, path, stop=None, options=None, **settings):
    connected = prepare(mode, partitions, stop, **(options or {}))
    return await connected.into(sink, checkpoint=path, checkpoint_every=0.01, **settings)


@pytest.fixture(params=[TakingBack, Committing], ids=["takes-back", "commits"])
def sink(request):
    return request.param()


async def test_an_undisturbed_run_gives_each_key_its_sequence(mode, sink, tmp_path):
    events = events_of(300)
    figures = await run(mode, split(events), sink, tmp_path)
    assert by_key(sink.kept) == expected(events)
    assert figures.committed == {name: len(some) - 1 for name, some in split(events).items()}
    assert figures.epoch > 1
    assert figures.saved > 0
    assert figures.results == len(sink.kept) == 300 + 7


async def test_a_run_that_is_stopped_and_started_again_goes_on(mode, sink, tmp_path):
    events = events_of(300)
    for stop in (3, 5, 0, 8):
        sink = remake(sink)
        await run(mode, split(events), sink, tmp_path, stop)
        assert all(result[0] != "end" for _, result in sink.kept)
    assert sink.kept
    sink = remake(sink)
    await run(mode, split(events), sink, tmp_path)
    assert by_key(sink.kept) == expected(events)


@pytest.mark.parametrize("step", STEPS)
async def test_a_run_that_dies_in_a_tick_goes_on_exactly(mode, sink, step, crashes, tmp_path):
    events = events_of(200)
    for number in (1, 2, 1, 3):
        crashes(step, number)
        with pytest.raises(Crash):
            await run(mode, split(events), sink, tmp_path)
        sink = remake(sink)
    failpoints.hook = None
    await run(mode, split(events), sink, tmp_path)
    assert by_key(sink.kept) == expected(events)


@pytest.mark.parametrize("step", [1, 2, 4])
async def test_a_run_that_unloads_keys_dies_and_goes_on(mode, step, crashes, tmp_path):
    events, sink = events_of(200, 13), TakingBack()
    settings = {"keys": "unload", "options": {"max_concurrent": 4}}
    for number in (1, 2, 2):
        crashes(step, number)
        with pytest.raises(Crash):
            await run(mode, split(events), sink, tmp_path, **settings)
        sink = remake(sink)
    failpoints.hook = None
    await run(mode, split(events), sink, tmp_path, **settings)
    assert by_key(sink.kept) == expected(events)


async def test_a_plain_sink_has_all_results_at_once_and_states_are_exact(mode, crashes, tmp_path):
    events = events_of(200)
    sink = MemorySink()
    crashes(4, 2)
    with pytest.raises(Crash):
        await run(mode, split(events), sink, tmp_path)
    failpoints.hook = None
    again = MemorySink()
    await run(mode, split(events), again, tmp_path)
    results = by_key(sink.results + again.results)
    for key, wanted in expected(events).items():
        assert sorted(set(results[key]), key=results[key].index) == wanted


async def test_a_key_without_new_records_ends_after_a_restart_too(mode, sink, tmp_path):
    events = events_of(50)
    await run(mode, {"a": [*events, *events]}, sink, tmp_path, 5)
    assert all(result[0] != "end" for _, result in sink.kept)
    sink = remake(sink)
    await run(mode, {"a": events}, sink, tmp_path)
    assert by_key(sink.kept) == expected(events)


class Short:
    """A source of one batch that cannot stop."""

    name = "short"

    def __init__(self, events, ends=lambda: None):
        self.events = events
        self.ends = ends

    def seek(self, positions):
        self.events = self.events[positions.get("p", -1) + 1 :]

    async def __aiter__(self):
        yield [Record(value, partition="p", position=n) for n, value in enumerate(self.events)]
        self.ends()

    async def commit(self, positions):
        pass


async def test_a_source_may_stop_its_run_with_its_last_words(mode, sink, tmp_path):
    events = events_of(50)
    connected = sequence.options(mode=mode).keyed(source := Short(events), key="k")
    source.ends = connected.stop
    await connected.into(sink, checkpoint=tmp_path)
    assert len(sink.kept) == 50, "no key has ended"
    sink = remake(sink)
    await sequence.options(mode=mode).keyed(Short(events), key="k").into(sink, checkpoint=tmp_path)
    assert by_key(sink.kept) == expected(events)


async def test_a_run_that_is_at_its_end_cannot_be_stopped_any_more(mode, sink, tmp_path):
    events = events_of(50)
    connected = sequence.options(mode=mode).keyed(Short(events), key="k")
    failpoints.hook = lambda _area, _step: connected.stop()
    await connected.into(sink, checkpoint=tmp_path, checkpoint_every=60)
    failpoints.hook = None
    assert by_key(sink.kept) == expected(events)


async def test_a_run_that_is_stopped_ends_with_what_fails_then(mode, sink, tmp_path):
    class Waiting(Short):
        def stop(self):
            pass

        async def __aiter__(self):
            async for batch in super().__aiter__():
                yield batch
            await asyncio.Event().wait()

    @stream_fn
    async def fails_late(events, state):
        async for event in events:
            while not os.path.exists(event["gate"]):
                await asyncio.sleep(0.001)
            raise ValueError("late")
            yield

    gate = tmp_path / "gate"
    source = Waiting([{"k": 0, "gate": str(gate)}])
    connected = fails_late.options(mode=mode).keyed(source, key="k")

    def ends():
        connected.stop()
        gate.touch()

    source.ends = ends
    with pytest.raises(ValueError, match="late"):
        await connected.into(sink, checkpoint=tmp_path / "checkpoint")
