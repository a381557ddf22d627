"""Random programs on random inputs: both modes and the bare generator give the same."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import programs
from helpers import HANG
from velo import stream_fn


def exact(value):
    """A value with its types, comparable without mercy."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return (kind, [exact(item) for item in value])
    if isinstance(value, dict):
        return (kind, [(exact(key), exact(item)) for key, item in value.items()])
    if isinstance(value, frozenset):
        return (kind, sorted(map(repr, value)))
    return (kind, repr(value))


async def outcome(results):
    """Results and how it ended."""
    got = []
    try:
        async for result in results:
            got.append(exact(result))
    except Exception as error:
        return got, type(error).__name__, exact(error.args)
    return got, None, None


async def bare(program, events):
    async def source():
        for event in events:
            yield event

    return await outcome(programs.function_of(program)(aiter(source())))


async def through(mode, program, events, buffer, how):
    fn = stream_fn(mode=mode, buffer=buffer)(programs.function_of(program))

    async def source():
        for event in events:
            yield event

    async def results(stream):
        if how in ("feed", "feed async"):
            async for result in stream.feed(events if how == "feed" else source()):
                yield result
            await stream.end()
        else:
            sending = asyncio.create_task(send(stream, events))
        async for result in stream:
            yield result
        if how == "send":
            await sending

    stream = await fn.open()
    try:
        return await outcome(results(stream))
    finally:
        await stream.__aexit__(KeyError, KeyError(), None)


async def send(stream, events):
    from velo.errors import StreamClosed

    try:
        for event in events:
            await stream.send(event)
        await stream.end()
    except StreamClosed:
        pass


async def compare(program, events, buffer, how):
    async with asyncio.timeout(HANG):
        expected = await bare(program, events)
        for mode in ("inline", "process"):
            assert await through(mode, program, events, buffer, how) == expected, mode


CASES = given(
    program=programs.PROGRAMS,
    events=st.lists(programs.VALUES, max_size=12) | st.lists(st.integers(-9, 9), max_size=40),
    buffer=st.sampled_from([1, 2, 7, 256]),
    how=st.sampled_from(["send", "feed", "feed async"]),
)


@pytest.fixture(scope="module")
def runner():
    """One event loop for all examples, so that they share their workers."""
    with asyncio.Runner() as runner:
        yield runner


def examples(count):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None)


def test_the_modes_agree(runner, long):
    @examples(10_000 if long else 500)
    @CASES
    def check(program, events, buffer, how):
        runner.run(compare(program, events, buffer, how))

    check()


def test_the_modes_agree_by_key(runner, long):
    """`keyed` gives what each key's events give alone, in order; or one of their errors."""

    async def alone(program, events):
        keys = dict.fromkeys(event % 3 for event in events)
        return {key: await bare(program, [e for e in events if e % 3 == key]) for key in keys}

    ways = ({"mode": "inline"}, {"mode": "process"}, {"mode": "process", "recover": "replay"})

    async def by_key(way, program, events):
        fn = stream_fn(**way)(programs.function_of(program))
        found = {}
        try:
            async for key, result in fn.keyed(events, key=lambda event: event % 3):
                found.setdefault(key, []).append(exact(result))
        except Exception as error:
            return found, type(error).__name__
        return found, None

    async def compare_keys(program, events):
        async with asyncio.timeout(HANG):
            expected = await alone(program, events)
            errors = {error for _, error, _ in expected.values() if error is not None}
            for way in ways:
                found, error = await by_key(way, program, events)
                if errors:
                    assert error in errors, way
                else:
                    wanted = {key: results for key, (results, _, _) in expected.items() if results}
                    assert (found, error) == (wanted, None), way
                for key, results in found.items():
                    assert results == expected[key][0][: len(results)], way

    @examples(2_000 if long else 100)
    @given(program=programs.PROGRAMS, events=st.lists(st.integers(-9, 9), max_size=30))
    def check(program, events):
        runner.run(compare_keys(program, events))

    check()


def test_the_modes_agree_in_chains(runner, long):
    """Two programs composed, in every mix of modes."""

    async def chained(first, second, modes, events):
        one, two = (
            stream_fn(mode=mode)(programs.function_of(program))
            for mode, program in zip(modes, (first, second))
        )
        stream = await (one | two).open()

        async def results():
            sending = asyncio.create_task(send(stream, events))
            async for result in stream:
                yield result
            await sending

        try:
            return await outcome(results())
        finally:
            await stream.__aexit__(KeyError, KeyError(), None)

    @examples(2_000 if long else 75)
    @given(
        first=programs.PROGRAMS,
        # Only in one place could it catch what the first one raises.
        second=programs.PROGRAMS.map(lambda program: {**program, "guard": False}),
        events=st.lists(st.integers(-9, 9), max_size=10),
    )
    def check(first, second, events):
        async def all_mixes():
            async with asyncio.timeout(HANG):
                expected = await chained(first, second, ("inline", "inline"), events)
                for modes in (("process",) * 2, ("inline", "process"), ("process", "inline")):
                    assert await chained(first, second, modes, events) == expected, modes

        runner.run(all_mixes())

    check()
