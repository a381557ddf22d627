"""Process mode: workers that die while a run keeps a checkpoint."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from helpers import until, until_sync
from replayed import Again, Committing, TakingBack, by_key, expected
from velo import stream_fn
from velo.connect.memory import MemorySink
from velo.errors import StreamClosed, WorkerDied


@stream_fn(mode="process", recover="replay", max_restarts=1)
async def fatal(events, state):
    """As `sequence`; an event may end the worker: always, or until a file is there."""
    async for event in events:
        if (once := event.get("once")) and not os.path.exists(once):
            Path(once).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        if (told := event.get("told")) and not os.path.exists(told):
            Path(told).touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if event.get("always"):
            os.kill(os.getpid(), signal.SIGSEGV)
        state["n"] = state.get("n", 0) + 1
        state["hash"] = (state.get("hash", 7) * 31 + event["v"]) % 1_000_003
        yield state["n"], state["hash"]
    yield "end", state.get("n", 0)


def source_of(events):
    """Waits at every fourth batch until a tick has absorbed all before it, or three fourths."""
    source = Again({"p": events}, batch=10)

    async def pauses(number):
        while number % 4 == 3 and source.committed.get("p", -1) + 10 < source.at["p"]:
            await asyncio.sleep(0.001)

    source.pauses = pauses
    return source


@pytest.mark.parametrize("kind", [TakingBack, Committing], ids=["takes-back", "commits"])
@pytest.mark.parametrize("settings", [{}, {"max_concurrent": 3}], ids=["all", "unloaded"])
async def test_keys_go_on_from_their_snapshots(kind, settings, tmp_path):
    events = [{"k": n * 3 % 8, "v": n} for n in range(400)]
    for n in (5, 57, 133, 399):
        events[n]["once"] = str(tmp_path / f"once-{n}")
    fn = fatal.options(workers=2, **settings)
    sink, keys = kind(), "unload" if settings else "end"
    await fn.keyed(source_of(events), key="k").into(
        sink, checkpoint=tmp_path / "checkpoint", checkpoint_every=0.01, keys=keys
    )
    assert by_key(sink.kept) == expected(events)


async def test_a_function_that_has_returned_is_not_run_once_more_for_a_checkpoint(tmp_path):
    """With `finished_keys="restart"`: its worker dies before it can say that the key has ended."""
    waits, blocked, died = (tmp_path / name for name in ("waits", "blocked", "died"))

    @stream_fn(mode="process", recover="replay", workers=1)
    async def first(events, state):
        async for event in events:
            yield event["k"]
            if event["k"] == "a":
                while not blocked.exists():
                    await asyncio.sleep(0.001)
                return
            if event["k"] == "b" and not died.exists():
                waits.touch()
                while not blocked.exists():
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.05)  # the other key has returned by then
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield "end"

    async def pauses(number):
        if number == 1:
            await until(waits.exists)
            blocked.touch()
            # The worker is dead before this program has read that the first key has returned.
            until_sync(died.exists)

    source, sink = Again({"p": [{"k": key} for key in "abc"]}, batch=2, pauses=pauses), TakingBack()
    await first.keyed(source, key="k", finished_keys="restart").into(
        sink, checkpoint=tmp_path / "checkpoint"
    )
    assert by_key(sink.kept) == {"a": ["a"], "b": ["b", "end"], "c": ["c", "end"]}


async def test_a_record_that_always_ends_its_worker_fails_alone(tmp_path):
    events = [{"k": n % 4, "v": n} for n in range(200)]
    poison = {**events[101], "always": True}
    sink, letters = TakingBack(), MemorySink()
    figures = await fatal.keyed(source_of([*events[:101], poison, *events[102:]]), key="k").into(
        sink, checkpoint=tmp_path, checkpoint_every=0.01, dead_letter=letters
    )
    assert by_key(sink.kept) == expected(events[:101] + events[102:])
    assert figures.dead_letters == 1
    assert letters.results[0][1].value["position"] == 101


@pytest.mark.parametrize("settings", [{}, {"on_error": "drop"}, {"dead_letter": MemorySink()}])
async def test_without_recovery_a_death_ends_the_run_and_the_next_one_goes_on(settings, tmp_path):
    events = [{"k": n % 4, "v": n} for n in range(100)]
    events[60]["once"] = str(tmp_path / "once")
    sink = TakingBack()
    fn = fatal.options(recover="none")
    path = tmp_path / "checkpoint"
    with pytest.raises(WorkerDied):
        await fn.keyed(source_of(events), key="k").into(sink, checkpoint=path, **settings)
    sink = TakingBack(sink.kept)
    await fn.keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == expected(events)


@pytest.mark.parametrize("recover", ["none", "replay"])
async def test_a_worker_that_is_told_to_stop_costs_no_state(recover, tmp_path):
    """As by a service manager that signals all processes of a service."""
    events = [{"k": n % 4, "v": n} for n in range(200)]
    sink, path, letters = TakingBack(), tmp_path / "checkpoint", MemorySink()
    fn = fatal.options(recover=recover, workers=1)
    events[90]["told"] = str(tmp_path / "told")
    with pytest.raises(StreamClosed):
        await fn.keyed(source_of(events), key="k").into(
            sink, checkpoint=path, checkpoint_every=0.01, dead_letter=letters
        )
    assert not letters.results
    sink = TakingBack(sink.kept)
    await fn.keyed(Again({"p": events}), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == expected(events)
