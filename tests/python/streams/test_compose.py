"""`a | b`: composed stream functions."""

import asyncio
import itertools
import os

import pytest

import functions
from functions import OwnError
from helpers import HANG, drain
from key_sums import collect
from velo import StreamConfig, stream_fn
from velo.errors import StreamClosed

MIXES = [list(mix) for mix in itertools.product(["inline", "process"], repeat=3)]


@stream_fn
async def evens(events):
    async for event in events:
        if event % 2 == 0:
            yield event


@stream_fn
async def pairs(events):
    held = []
    async for event in events:
        held.append(event)
        if len(held) == 2:
            yield tuple(held)
            held = []
    if held:
        yield tuple(held)


@stream_fn
async def tagged(events):
    async for event in events:
        yield (event, os.getpid())


@pytest.fixture(params=MIXES, ids="-".join)
def mix(request):
    return request.param


async def test_three_in_any_mix_of_modes(mix):
    one, two, three = (
        fn.options(mode=m) for fn, m in zip([evens, functions.running_sum, pairs], mix)
    )
    results = await (one | two | three).run(range(11))
    assert results == [(0, 2), (6, 12), (20, 30)]


async def test_grouping_does_not_matter(mix):
    one, two, three = (
        fn.options(mode=m) for fn, m in zip([evens, functions.running_sum, pairs], mix)
    )
    assert await (one | (two | three)).run(range(11)) == await ((one | two) | three).run(range(11))


async def test_same_mode_runs_in_one_place(mode):
    one, two = tagged.options(mode=mode), tagged.options(mode=mode)
    (((_, first), second),) = await (one | two).run([1])
    assert first == second
    assert (first == os.getpid()) is (mode == "inline")
    assert (one | two).config.mode == mode


async def test_mixed_modes_run_where_they_say():
    inline, process = tagged.options(mode="inline"), tagged.options(mode="process")
    for chain, first_is_here in ((inline | process, True), (process | inline, False)):
        (((_, first), second),) = await chain.run([1])
        assert (first == os.getpid()) is first_is_here
        assert (second == os.getpid()) is not first_is_here


async def test_after_loops_of_each_part(mix):
    parts = [functions.after_loop.options(mode=m) for m in mix]
    chain = parts[0] | parts[1] | parts[2]
    assert await chain.run([1]) == [1, "done", "done", "done"]


async def test_live_stream_through_a_chain(mix):
    parts = [functions.running_sum.options(mode=m) for m in mix]
    async with (parts[0] | parts[1] | parts[2]).open() as stream:
        for event, expected in ((1, 1), (1, 4), (1, 10)):
            await stream.send(event)
            assert await asyncio.wait_for(stream.recv(), HANG) == expected


async def test_many_events(mix):
    parts = [functions.echo.options(mode=m, buffer=16) for m in mix]
    assert await (parts[0] | parts[1] | parts[2]).run(range(2000)) == list(range(2000))


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_error_of_any_part(mix, place):
    """Its own type, after the results that came before."""
    fns = [functions.echo] * 3
    fns[place] = functions.fails
    one, two, three = (fn.options(mode=m) for fn, m in zip(fns, mix))
    async with (one | two | three).open() as stream:
        await stream.send_batch([1, 2, "own", 3])
        await stream.end()
        got = []
        with pytest.raises(OwnError):
            async for result in stream:
                got.append(result)
        assert got == [1, 2]


@stream_fn
async def fails_at_once(events):
    raise OwnError("at once")
    yield


@stream_fn
async def greets_late(events):
    """Yields before its first event, after a while; and once more if its input ends."""
    await asyncio.sleep(0.05)
    yield "hello"
    async for event in events:
        yield event
    yield "the end"


async def test_results_before_the_first_event_come_before_an_upstream_error(mix):
    one, two, three = (
        fn.options(mode=m) for fn, m in zip([fails_at_once, greets_late, functions.echo], mix)
    )
    async with (one | two | three).open() as stream:
        got = []
        with pytest.raises(OwnError, match="at once"):
            async for result in stream:
                got.append(result)
        assert got == ["hello"]


async def test_an_upstream_error_does_not_end_the_input(mix):
    """It rises out of the next part's loop: what that would do after its loop is not done."""
    fns = [functions.fails, functions.after_loop, functions.echo]
    one, two, three = (fn.options(mode=m) for fn, m in zip(fns, mix))
    with pytest.raises(OwnError):
        await (one | two | three).run([1, "own"])
    async with (one | two | three).open() as stream:
        await stream.send("own")
        got = []
        with pytest.raises(OwnError):
            async for result in stream:
                got.append(result)
        assert got == []


@stream_fn
async def first_one(events):
    yield await anext(events)


async def test_an_upstream_error_that_nobody_asked_for_is_not_raised(mix):
    """The next part had returned before; whether the event after was read ahead is no matter."""
    fns = [functions.fails, first_one, functions.echo]
    one, two, three = (fn.options(mode=m) for fn, m in zip(fns, mix))
    for _ in range(5):
        assert await asyncio.wait_for((one | two | three).run([1, "own"]), HANG) == [1]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_early_return_of_any_part(mix, place):
    fns = [functions.echo] * 3
    fns[place] = functions.first_two
    one, two, three = (fn.options(mode=m) for fn, m in zip(fns, mix))
    chain = one | two | three
    assert await asyncio.wait_for(chain.run(range(1000)), HANG) == [0, 1]


async def test_finally_of_every_part_runs(mix, tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(3)]

    def cleaning(path, mode):
        @stream_fn(mode=mode)
        async def cleans(events):
            try:
                async for event in events:
                    yield event
            finally:
                functions.mark(path)

        return cleans

    one, two, three = map(cleaning, paths, mix)
    with pytest.raises(ZeroDivisionError):
        async with (one | two | three).open() as stream:
            await stream.send(1)
            assert await stream.recv() == 1
            _ = 1 / 0
    assert [functions.marks(path) for path in paths] == ["x", "x", "x"]


async def test_closing_a_chain(mix):
    parts = [functions.echo.options(mode=m) for m in mix]
    async with (parts[0] | parts[1] | parts[2]).open() as stream:
        await stream.send_batch(range(10))
    with pytest.raises(StreamClosed):
        await stream.send(1)
    assert await drain(stream) == [] if not stream._over else True


def test_the_strictest_limits_hold():
    a = functions.echo.options(buffer=10, timeout=5.0, max_concurrent=7, event_timeout=3.0)
    b = functions.echo.options(buffer=20, timeout=2.0, overflow="error", close_timeout=1.0)
    for chain in (a | b, b | a):
        config = chain.config
        assert (config.buffer, config.timeout, config.max_concurrent) == (10, 2.0, 7)
        assert (config.overflow, config.close_timeout) == ("error", 1.0)
        assert (config.event_timeout, config.stall_timeout) == (3.0, None)


async def test_max_concurrent_of_a_chain(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=1, overflow="error")
    chain = limited | functions.echo.options(mode=mode)
    async with chain.open():
        with pytest.raises(Exception, match="max_concurrent"):
            await chain.open()
    async with chain.open():
        pass


async def test_chain_has_options_and_a_name(mode):
    chain = (evens | pairs).options(mode=mode, buffer=3)
    assert chain.config == StreamConfig(mode=mode, buffer=3)
    assert "evens" in repr(chain)
    assert "pairs" in repr(chain)
    assert await chain.run(range(8)) == [(0, 2), (4, 6)]


@pytest.mark.parametrize("wrong", [5, None, "x", lambda events: events, functions.with_factor])
def test_only_stream_functions_compose(wrong):
    with pytest.raises(TypeError):
        _ = evens | wrong
    with pytest.raises(TypeError):
        _ = wrong | evens


async def test_a_function_composed_with_itself(mode):
    summing = functions.running_sum.options(mode=mode)
    assert await (summing | summing).run([1, 1, 1]) == [1, 3, 6]


async def test_chain_by_key(mix):
    parts = [functions.running_sum.options(mode=m) for m in mix]
    chain = parts[0] | parts[1] | parts[2]
    found = await collect(chain.keyed([1, 2, 1, 2], key=lambda e: e))
    assert found == {1: [1, 4], 2: [2, 8]}
