"""Results between two ticks, and functions that make them in their own ways."""

import asyncio
import random

import pytest

from helpers import until
from replayed import Again, Committing, TakingBack, by_key, expected, sequence
from velo import stream_fn
from velo._api import ticks
from velo._api.held_results import HeldResults
from velo._diagnostics import failpoints
from velo.connect.memory import MemorySink
from velo.errors import CheckpointError


class Crash(Exception):
    """The process dies here."""


@pytest.fixture
def dies_at(monkeypatch):
    """Has a run die at a step of the n-th tick."""

    def at(step, number):
        left = [number]

        def hook(_area, reached):
            if reached == step:
                left[0] -= 1
                if left[0] == 0:
                    raise Crash

        monkeypatch.setattr(failpoints, "hook", hook)

    return at


def test_results_behind_the_marks_of_late_keys_are_split_off():
    rng = random.Random(3)
    for _ in range(200):
        pairs = [(rng.randrange(9), n) for n in range(rng.randrange(60))]
        late = set(rng.sample(range(9), rng.randrange(9)))
        marks = {key: rng.randrange(61) for key in rng.sample(range(9), 5)}
        dropped = {key: [range(*sorted(rng.sample(range(61), 2)))] for key in rng.sample((1, 2), 1)}
        held = HeldResults()
        for start in range(0, len(pairs), 7):
            held.add(pairs[start : start + 7])
        held.drop(dropped)
        behind = held.split(late, marks)
        left = [pair for pair in pairs if not any(pair[1] in d for d in dropped.get(pair[0], ()))]
        cut = [key in late and place >= marks.get(key, 0) for key, place in left]
        for found, is_behind in ((held, False), (behind, True)):
            wanted = [pair for pair, is_cut in zip(left, cut, strict=True) if is_cut is is_behind]
            assert [pair for some in found.batches(10) for pair in some] == wanted


async def test_many_results_have_ticks_come_early(mode, monkeypatch, tmp_path):
    monkeypatch.setattr(ticks, "_MOST_HELD", 40)
    events = [{"k": n % 5, "v": n} for n in range(1000)]
    sink = TakingBack()
    fn = sequence.options(mode=mode)
    run = fn.keyed(Again({"p": events}, batch=30), key="k", max_pending=50)
    figures = await run.into(sink, checkpoint=tmp_path, checkpoint_every=1000)
    assert by_key(sink.kept) == expected(events)
    assert figures.epoch > 5


async def test_a_key_that_never_asks_again_is_named(mode, monkeypatch, tmp_path):
    monkeypatch.setattr(ticks, "_MOST_BEHIND", 100)

    @stream_fn(mode=mode)
    async def floods(events, state):
        async for _event in events:
            while True:
                yield "more"
                await asyncio.sleep(0)

    run = floods.keyed(Again({"p": [{"k": "flood", "v": 1}]}), key="k")
    with pytest.raises(CheckpointError, match="the key 'flood' makes more and more results"):
        await run.into(TakingBack(), checkpoint=tmp_path, checkpoint_every=0.01)


async def test_the_key_that_never_asks_again_is_named_beside_others_that_are_late(
    mode, monkeypatch, tmp_path
):
    monkeypatch.setattr(ticks, "_MOST_BEHIND", 100)

    @stream_fn(mode=mode)
    async def floods(events, state):
        async for event in events:
            yield "some"
            while event["k"] == "flood":
                yield "more"
                await asyncio.sleep(0)
            await asyncio.Event().wait()

    run = floods.keyed(Again({"p": [{"k": key} for key in (*range(40), "flood")]}), key="k")
    with pytest.raises(CheckpointError, match="the key 'flood' makes more and more results"):
        await run.into(TakingBack(), checkpoint=tmp_path, checkpoint_every=0.01)


async def test_keys_may_be_late_with_many_results_together(monkeypatch, tmp_path):
    monkeypatch.setattr(ticks, "_MOST_BEHIND", 100)
    made, late = [], []

    def hook(area, step):
        if (area, step) == ("tick", 1) and len(made) == 300:
            late.append(step)

    monkeypatch.setattr(failpoints, "hook", hook)

    @stream_fn
    async def ten(events, state):
        async for _event in events:
            for n in range(10):
                made.append(n)
                yield n
            await until(lambda: len(late) > 2)

    sink = TakingBack()
    run = ten.keyed(Again({"p": [{"k": key} for key in range(30)]}), key="k")
    await run.into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
    assert by_key(sink.kept) == {key: list(range(10)) for key in range(30)}


@pytest.mark.parametrize(
    ("keys", "each", "who"),
    [(1, 1200, "the key 0 makes"), (3, 900, r"3 keys, of which \d has most, make")],
)
async def test_too_many_results_of_keys_that_wait_end_the_run(
    keys, each, who, mode, monkeypatch, tmp_path
):
    monkeypatch.setattr(ticks, "_MOST_BEHIND", 1000)
    monkeypatch.setattr(ticks, "_MOST_BEHIND_IN_ALL", 2000)

    @stream_fn(mode=mode)
    async def some(events, state):
        async for _event in events:
            for n in range(each):
                yield n
            await asyncio.Event().wait()

    run = some.keyed(Again({"p": [{"k": key} for key in range(keys)]}), key="k")
    with pytest.raises(CheckpointError, match=f"^{who} more and more results"):
        await run.into(TakingBack(), checkpoint=tmp_path, checkpoint_every=0.01)


async def test_a_function_that_waits_for_events_beside_a_clock_is_saved(mode, tmp_path):
    @stream_fn(mode=mode)
    async def beats(events, state):
        source = aiter(events)
        waits = asyncio.ensure_future(anext(source))
        while True:
            done, _ = await asyncio.wait([waits], timeout=0.005)
            if not done:
                yield "beat", state.get("n", 0)
                continue
            try:
                event = waits.result()
            except StopAsyncIteration:
                return
            state["n"] = state.get("n", 0) + 1
            waits = asyncio.ensure_future(anext(source))
            yield "event", event["v"]

    events = [{"k": 0, "v": n} for n in range(4)]
    sink = TakingBack()
    for count in (2, 4):
        source = Again({"p": events[:count]}, batch=1)
        run = beats.keyed(source, key="k")

        async def pauses(number, run=run):
            if number == 1:
                while ("event", 0) not in [result for _, result in sink.kept]:
                    await asyncio.sleep(0.001)
                run.stop()

        sink = TakingBack(sink.kept)
        source.pauses = pauses if count == 2 else None
        await run.into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
    assert [value for _, (kind, value) in sink.kept if kind == "event"] == [0, 1, 2, 3]


@stream_fn
async def pairs(events, state):
    """Takes two events, and returns."""
    async for event in events:
        state["seen"] = [*state.get("seen", []), event["v"]]
        yield state["seen"]
        if len(state["seen"]) == 2:
            return


@pytest.mark.parametrize("step", [1, 4])
async def test_a_function_that_begins_anew_does_so_at_the_same_event(mode, step, dies_at, tmp_path):
    events = [{"k": n % 3, "v": n} for n in range(90)]
    sink = Committing()
    for number in (2, 3, 0):
        source = Again({"p": events}, batch=5)

        async def pauses(number, source=source):
            while number % 4 == 3 and source.committed.get("p", -1) + 1 < source.at["p"]:
                await asyncio.sleep(0.001)

        source.pauses = pauses
        run = pairs.options(mode=mode).keyed(source, key="k", finished_keys="restart")
        dies_at(step, number)
        if number:
            with pytest.raises(Crash):
                await run.into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
        else:
            await run.into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
        sink = Committing(sink.kept, sink.epochs)
    for key, found in by_key(sink.kept).items():
        values = range(key, 90, 3)
        wanted = [
            [value] if n % 2 == 0 else [values[n - 1], value] for n, value in enumerate(values)
        ]
        assert found == wanted


async def test_a_key_without_a_form_is_named(mode, tmp_path):
    class Odd:
        pass

    run = sequence.options(mode=mode).keyed(Again({"p": [{"v": 1}]}), key=lambda _event: Odd())
    with pytest.raises(CheckpointError, match="cannot be stored in a checkpoint"):
        await run.into(MemorySink(), checkpoint=tmp_path)


@stream_fn
async def pickled(events, state):
    async for event in events:
        state["what"] = ValueError("an object that is pickled")
        yield event["v"]


async def test_a_state_that_is_pickled_is_stored_where_it_is_trusted(mode, tmp_path):
    def run(count):
        fn = pickled.options(mode=mode)
        connected = fn.keyed(
            source := Again({"p": [{"k": 7, "v": n} for n in range(2)]}, 1), key="k"
        )

        async def stops(number):
            if number == count:
                connected.stop()

        source.pauses = stops
        return connected

    with pytest.raises(CheckpointError, match="key 7 of .* holds a pickle"):
        await run(1).into(MemorySink(), checkpoint=tmp_path)
    sink = MemorySink()
    await run(1).into(sink, checkpoint=tmp_path, trusted=True)
    await run(None).into(sink, checkpoint=tmp_path, trusted=True)
    assert [value for _, value in sink.results] == [0, 1]
