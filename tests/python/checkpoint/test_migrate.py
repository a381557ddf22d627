"""New code on the states of old code, in both modes: `state_version` and `migrate`."""

import pytest

from replayed import Again, TakingBack, by_key
from velo import StreamConfig, stream_fn
from velo.errors import CheckpointError

EVENTS = [{"k": n % 3, "v": n} for n in range(60)]


async def old(events, state):
    async for event in events:
        state["sum"] = state.get("sum", 0) + event["v"]
        yield state["sum"]


async def new(events, state):
    async for event in events:
        state["tenfold"] = state.get("tenfold", 0) + 10 * event["v"]
        yield state["tenfold"]


for function in (old, new):
    function.__qualname__ = "sums"  # it is one function, before and after a change


def to_tenfold(state, version):
    assert version == 1
    return {"tenfold": 10 * state["sum"]}


async def run(function, sink, path, mode, stop=None, **settings):
    source = Again({"p": EVENTS})
    running = stream_fn(function, mode=mode, **settings).keyed(source, key="k")

    async def pauses(number):
        if number == stop:
            running.stop()

    source.pauses = pauses
    await running.into(sink, checkpoint=path)


async def test_states_of_old_code_are_migrated(mode, tmp_path):
    sink = TakingBack()
    await run(old, sink, tmp_path, mode, stop=3)
    await run(new, sink, tmp_path, mode, state_version=2, migrate=to_tenfold)
    sums, expected = dict.fromkeys(range(3), 0), []
    for number, event in enumerate(EVENTS):
        sums[event["k"]] += event["v"]
        expected.append((event["k"], sums[event["k"]] * (1 if number < 30 else 10)))
    assert by_key(sink.kept) == by_key(expected)


async def test_without_migrate_the_run_is_refused(mode, tmp_path):
    sink = TakingBack()
    await run(old, sink, tmp_path, mode, stop=3)
    before = list(sink.kept)
    with pytest.raises(CheckpointError) as raised:
        await run(new, sink, tmp_path, mode, state_version=2)
    message = str(raised.value)
    assert "the state of the key " in message
    assert "is of version 1, and `sums` has `state_version=2`" in message
    assert sink.kept == before


async def test_a_migrate_that_raises_ends_the_run(mode, tmp_path):
    sink = TakingBack()
    await run(old, sink, tmp_path, mode, stop=3)
    with pytest.raises(CheckpointError, match="`migrate` of `sums` has raised for the state of"):
        await run(new, sink, tmp_path, mode, state_version=2, migrate=lambda *_: 1 / 0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`state_version` must be between 1"):
        StreamConfig(state_version=0)
    with pytest.raises(TypeError, match="`migrate` must be a function"):
        StreamConfig(migrate={})


def test_a_chain_has_a_state_of_its_own():
    chain = stream_fn(old) | stream_fn(new, state_version=2, migrate=to_tenfold)
    assert (chain.config.state_version, chain.config.migrate) == (1, None)
    assert chain.options(state_version=2, migrate=to_tenfold).config.migrate is to_tenfold
