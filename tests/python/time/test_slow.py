"""The warnings about functions that hold up their event loop."""

import asyncio
import time
import warnings

import pytest

from helpers import HANG
from velo import stream_fn
from velo._diagnostics import slow_steps
from velo.errors import SlowStepWarning


def sleeper(mode, wait):
    @stream_fn(mode=mode)
    async def sleeps(events):
        async for event in events:
            await wait(event)
            yield event

    return sleeps


async def blocks(seconds):
    time.sleep(seconds)


@pytest.fixture(autouse=True)
def unnamed(monkeypatch):
    monkeypatch.setattr(slow_steps, "_named", set())


async def test_it_is_named_once_with_what_to_do():
    sleeps = sleeper("inline", blocks)
    with pytest.warns(SlowStepWarning, match=r"sleeps.*held up.*`mode=\"process\"`") as caught:
        await sleeps.run([0.06, 0.06])
        async with sleeps.open() as stream:
            await stream.send(0.06)
            await stream.recv()
    assert len(caught) == 1


async def test_one_that_is_inline_in_a_worker_is_not_told_to_go_to_a_worker():
    inner = sleeper("inline", blocks)

    @stream_fn(mode="process")
    async def outer(events):
        async for seconds in events:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await inner.run([seconds])
            yield [str(w.message) for w in caught if issubclass(w.category, SlowStepWarning)]

    ((told,),) = await outer.run([0.06])
    assert "`sleeper.<locals>.sleeps` held up all streams of the worker" in told
    assert "mode=" not in told


async def until_named(named, run):
    """Runs until the warnings name `named`: on a busy machine any step may take long, once."""
    async with asyncio.timeout(HANG):
        while True:
            slow_steps._named.clear()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await run()
            texts = [str(w.message) for w in caught if issubclass(w.category, SlowStepWarning)]
            if ["outer" if ".outer`" in text else "sleeps" for text in texts] == named:
                return


@pytest.mark.parametrize("how", ["waits", "works elsewhere", "is quick"])
async def test_nothing_is_said_of_others(how):
    mode = "process" if how == "works elsewhere" else "inline"
    wait = asyncio.sleep if how == "waits" else blocks
    sleeps = sleeper(mode, wait)
    seconds = 0 if how == "is quick" else 0.06
    await until_named([], lambda: sleeps.run([seconds] * 3))


async def test_who_waits_for_a_slow_one_is_not_named():
    inner = sleeper("inline", blocks)

    @stream_fn
    async def outer(events):
        async with inner.open() as stream:
            async for event in events:
                await stream.send(event)
                yield await stream.recv()

    await until_named(["sleeps"], lambda: outer.run([0.06]))
