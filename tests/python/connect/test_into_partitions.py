"""`into`: partitions that wait, go, and come back."""

import asyncio

import pytest

from scripted import Scripted, counts, records, waiting
from velo import stream_fn
from velo.connect import Assigned, Lost, Revoked
from velo.connect.memory import MemorySink, MemorySource


async def test_a_position_waits_for_all_before_it(mode, tmp_path):
    gate, more = tmp_path / "gate", asyncio.Event()
    source = Scripted(records("p", [1, 0, 2, 3, 4]), more.wait)
    sink = MemorySink()
    run = waiting(mode, gate, 0).keyed(source, key=lambda event: event)
    task = asyncio.create_task(run.into(sink, commit_every=0.01))
    while source.committed.get("p") != 0:  # event 1 lies at position 0
        await asyncio.sleep(0.001)
    while len(sink.results) < 4:
        await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert source.committed == {"p": 0}
    gate.touch()
    while source.committed != {"p": 4}:
        await asyncio.sleep(0.001)
    more.set()
    await task


async def test_a_slow_key_pauses_its_partition_and_no_other(mode, tmp_path):
    gate = tmp_path / "gate"
    source = MemorySource({"s": ["slow"] + ["x"] * 500, "f": ["y"] * 500}, batch=20)
    sink = MemorySink()
    run = waiting(mode, gate, "slow").keyed(source, key=lambda event: event, max_pending=50)
    task = asyncio.create_task(run.into(sink, commit_every=0.01))
    while sum(value == "y" for _, value in sink.results) < 500:
        await asyncio.sleep(0.001)
    assert "s" in source._paused
    passed = sum(value == "x" for _, value in sink.results)
    assert passed < 50
    gate.touch()
    await task
    assert source.committed == {"s": 500, "f": 499}
    assert len(sink.results) == 1001


async def test_a_source_that_cannot_pause_is_held_up_and_goes_on():
    release = asyncio.Event()

    @stream_fn
    async def waits(events):
        async for event in events:
            if event == 0:
                await release.wait()
            yield event

    source = Scripted(*(records("p", [n], first=n) for n in range(100)))
    sink = MemorySink()
    run = waits.keyed(source, key=lambda event: event, max_pending=10)
    task = asyncio.create_task(run.into(sink))
    while run.figures.read < 11:
        await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert run.figures.read == 11
    release.set()
    await task
    assert source.committed == {"p": 99}


async def test_a_revoked_partition_is_finished_and_committed_first(mode):
    source = Scripted(
        Assigned(["p", "q"]),
        records("p", [{"k": 1}] * 30),
        records("q", [{"k": 2}] * 10),
        Revoked(["p"]),
        records("q", [{"k": 2}] * 10, first=10),
    )
    sink = MemorySink()
    run = counts.options(mode=mode).keyed(source, key="k")
    await run.into(sink, commit_every=60)
    kinds = [(kind, what) for kind, what in source.calls if kind == "commit" or "q" in str(what)]
    revoked = next(n for n, (_, what) in enumerate(kinds) if isinstance(what, list) and n > 1)
    commits_before = [what for kind, what in kinds[:revoked] if kind == "commit"]
    assert any(what.get("p") == 29 for what in commits_before)
    assert source.committed == {"p": 29, "q": 19}


async def test_keys_of_a_revoked_partition_begin_anew_when_it_comes_back(mode):
    source = Scripted(
        records("p", [{"k": 1}] * 3), Revoked(["p"]), records("p", [{"k": 1}] * 2, first=3)
    )
    sink = MemorySink()
    await counts.options(mode=mode).keyed(source, key="k").into(sink)
    assert [number for _, (_, number, _) in sink.results] == [1, 2, 3, 1, 2]


async def test_a_lost_partition_is_never_committed(mode, tmp_path):
    gate = tmp_path / "gate"

    async def let_go():
        gate.touch()

    source = Scripted(records("p", [0, 0, 0]), Lost(["p"]), let_go, records("q", [1]))
    run = waiting(mode, gate, 0).keyed(source, key=lambda event: event)
    await run.into(MemorySink(), commit_every=0.01)
    assert source.committed == {"q": 0}


async def test_a_source_that_fails_to_resume_ends_the_run(mode):
    class Fails(MemorySource):
        def resume(self, partitions):
            raise RuntimeError("not resumed")

    source = Fails({"a": [{"k": 1} for _ in range(100)]}, batch=50)
    with pytest.raises(RuntimeError, match="not resumed"):
        await counts.options(mode=mode).keyed(source, key="k", max_pending=5).into(MemorySink())
