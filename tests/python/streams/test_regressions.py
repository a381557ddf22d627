"""Faults of velo-stream 0.2.0, each seen by running it; none of them may come back."""

import asyncio

import pytest

import functions
from helpers import HANG
from velo import stream_fn


async def test_a_late_result_is_not_dropped(mode):
    """It dropped what came more than 50 ms after the source ended."""

    @stream_fn(mode=mode)
    async def late(events):
        async for event in events:
            await asyncio.sleep(0.12)
            yield event

    assert await late.run([1, 2]) == [1, 2]
    async with late.open() as stream:
        assert [result async for result in stream.feed([3])] == [3]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_failing_source_is_not_swallowed(mode, asynchronous):
    """It ended quietly when the source raised."""

    def plain():
        yield 1
        raise LookupError("source")

    async def asynced():
        yield 1
        raise LookupError("source")

    source = asynced if asynchronous else plain
    echo = functions.echo.options(mode=mode)
    with pytest.raises(LookupError):
        await echo.run(source())
    with pytest.raises(LookupError):
        async with echo.open() as stream:
            async for _ in stream.feed(source()):
                pass
    with pytest.raises(LookupError):
        async for _ in echo.keyed(source(), key=lambda event: event):
            pass


async def test_feed_of_a_plain_list(mode):
    """It yielded nothing and said nothing."""
    async with functions.echo.options(mode=mode).open() as stream:
        assert [result async for result in stream.feed([1, 2, 3])] == [1, 2, 3]


async def test_results_after_the_loop(mode):
    """It lost them."""
    assert await functions.after_loop.options(mode=mode).run([1]) == [1, "done"]
    async with functions.after_loop.options(mode=mode).open() as stream:
        assert [result async for result in stream.feed([1])] == []
        await stream.end()
        assert [result async for result in stream] == [1, "done"]


async def test_bytes_are_never_decoded(mode):
    """It took bytes that start with 0x01 for MessagePack."""
    events = [bytes([first]) + rest for first in range(256) for rest in (b"", b"\x93\x01\x02\x03")]
    results = await functions.echo.options(mode=mode).run(events)
    assert results == events
    assert {type(result) for result in results} == {bytes}


async def test_latency_percentiles_are_measured(mode):
    """They stayed 0."""
    async with functions.echo.options(mode=mode).open() as stream:
        for number in range(100):
            await stream.send(number)
            await stream.recv()
        metrics = stream.metrics
    assert 0 < metrics.latency_p50 <= metrics.latency_p95 <= metrics.latency_p99


async def test_timeout_does_something(mode):
    """It did nothing."""
    async with functions.after_loop.options(mode=mode, timeout=0.05).open() as stream:
        async with asyncio.timeout(HANG):
            assert [result async for result in stream] == ["done"]


async def test_equal_settings_do_not_share_places(mode):
    """Functions with equal settings shared one `max_concurrent`."""
    settings = {"mode": mode, "max_concurrent": 1, "overflow": "error"}
    one, other = functions.echo.options(**settings), functions.greets.options(**settings)
    async with asyncio.timeout(HANG):
        async with one.open(), other.open() as stream:
            assert await stream.recv() == "hello"
