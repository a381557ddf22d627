"""Runs whose keys or states a checkpoint cannot store, and a disk that is full in the middle."""

import asyncio
import enum

import pytest

from replayed import Again, TakingBack, by_key
from small_disk import enlarge, mounted
from velo import stream_fn
from velo.errors import CheckpointError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Total:
    def __init__(self):
        self.value = 0


@stream_fn
async def plain(events, state):
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        yield state["n"]


@stream_fn
async def objects(events, state):
    async for event in events:
        total = state.setdefault("total", Total())
        total.value += event["v"]
        yield total.value


@stream_fn
async def large(events, state):
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        state["text"] = "x" * 40_000
        yield state["n"]


EVENTS = [{"k": n % 20, "v": n} for n in range(200)]


async def run(fn, mode, path, sink, key="k", events=EVENTS, **settings):
    source = Again({"p": events})

    async def pauses(number):
        while number == 12 and not source.committed:  # a tick has found all keys in the middle
            await asyncio.sleep(0.001)

    source.pauses = pauses
    running = fn.options(mode=mode).keyed(source, key=key)
    await running.into(sink, checkpoint=path, checkpoint_every=0.01, **settings)


@pytest.mark.parametrize("before", [False, True], ids=["first run", "later run"])
async def test_a_key_that_cannot_be_stored_is_named(mode, before, tmp_path):
    sink = TakingBack()
    if before:
        await run(plain, mode, tmp_path, sink, events=EVENTS[:5])
    with pytest.raises(CheckpointError) as raised:
        await run(plain, mode, tmp_path, sink, key=lambda event: Colour(event["v"] % 2 + 1))
    assert "the key <Colour." in str(raised.value)
    assert "cannot be stored in a checkpoint: a `Colour` compares in its own way" in str(
        raised.value
    )


async def test_a_state_that_holds_an_object_is_named(mode, tmp_path):
    with pytest.raises(CheckpointError) as raised:
        await run(objects, mode, tmp_path, TakingBack())
    message = str(raised.value)
    assert "the state of the key " in message
    assert "of `objects` holds a pickle" in message
    assert "Total`" in message


async def test_a_state_that_holds_an_object_is_kept_where_that_is_trusted(mode, tmp_path):
    sink = TakingBack()
    await run(objects, mode, tmp_path, sink, trusted=True)
    assert [result for key, result in sink.kept if key == 7][:3] == [7, 34, 81]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of half a megabyte."""
    with mounted(tmp_path / "disk", "512k") as disk:
        yield disk


async def test_a_run_whose_disk_was_full_goes_on_exactly(mode, small_disk):
    sink, path = TakingBack(), small_disk / "kept"
    with pytest.raises(CheckpointError, match="full"):
        await run(large, mode, path, sink)
    enlarge(small_disk, "32m")
    await run(large, mode, path, sink)
    expected = [(event["k"], number // 20 + 1) for number, event in enumerate(EVENTS)]
    assert by_key(sink.kept) == by_key(expected)
