"""`stream.metrics`."""

import asyncio
import time

import pytest

import functions
from helpers import drain, until
from velo import StreamMetrics, stream_fn


async def test_counts(mode):
    async with functions.repeat.options(mode=mode).open() as stream:
        assert isinstance(stream.metrics, StreamMetrics)
        await stream.send_batch([2, 3, 0])
        await stream.end()
        assert len(await drain(stream)) == 5
        metrics = stream.metrics
        assert (metrics.events, metrics.results, metrics.queued) == (3, 5, 0)


async def test_a_new_stream(mode):
    began = time.monotonic()
    async with functions.echo.options(mode=mode).open() as stream:
        metrics, there = stream.metrics, time.monotonic() - began
        assert metrics[:5] == (0, 0, 0, 0, 0)
        assert metrics.latency_p50 is None
        assert metrics.latency_p99 is None
        assert 0 <= metrics.duration <= there


def longest(waits):
    """Microseconds that an event took at most, by the waits of this test."""
    return 1.2e6 * max(waits)  # figures have one digit


@pytest.mark.parametrize("how", ["recv", "batch", "iterate", "feed"])
async def test_latency_of_a_known_delay(mode, how):
    """Every event takes 20 ms."""

    @stream_fn(mode=mode)
    async def slow(events):
        async for event in events:
            await asyncio.sleep(0.02)
            yield event

    waits = []
    async with slow.open() as stream:
        for _ in range(6):
            began = time.monotonic()
            if how == "feed":
                assert [r async for r in stream.feed([1])] == [1]
            else:
                await stream.send(1)
            if how == "recv":
                await stream.recv()
            elif how == "batch":
                await stream.recv_batch()
            elif how == "iterate":
                await anext(aiter(stream))
            # The function asks for its next event in its own time.
            await until(lambda: stream.metrics.queued == 0)
            waits.append(time.monotonic() - began)
        await stream.end()
        await drain(stream)
        metrics = stream.metrics
        assert 18_000 <= metrics.latency_p50 <= longest(waits)
        assert metrics.latency_p50 <= metrics.latency_p95 <= metrics.latency_p99


async def test_fast_events_are_not_slow(mode):
    waits = []
    async with functions.echo.options(mode=mode).open() as stream:
        for number in range(300):
            began = time.monotonic()
            await stream.send(number)
            await stream.recv()
            waits.append(time.monotonic() - began)
        assert 0 < stream.metrics.latency_p50 <= longest(waits)


async def test_latency_of_a_function_without_results(mode):
    """The function is done with the events though nothing ever comes back."""

    @stream_fn(mode=mode)
    async def sink(events):
        async for _ in events:
            pass
        yield "end"

    async with sink.open() as stream:
        await stream.send_batch(range(10))
        await stream.end()
        await drain(stream)
        assert stream.metrics.latency_p50 is not None
        assert stream.metrics.queued == 0


async def test_bytes(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        for _ in range(10):
            await stream.send(bytes(1000))
            await stream.recv()
        metrics = stream.metrics
        if mode == "inline":
            assert (metrics.bytes_in, metrics.bytes_out) == (0, 0)
        else:
            assert 10_000 <= metrics.bytes_in <= 10_500
            assert 10_000 <= metrics.bytes_out <= 10_500


async def test_queue_depth(mode, tmp_path):
    path = str(tmp_path / "gate")
    async with functions.gate.options(mode=mode).open() as stream:
        await stream.send_batch([path, 1, 2, 3])
        await until(lambda: stream.metrics.queued == 3)
        functions.mark(path)
        await stream.end()
        await drain(stream)
        assert stream.metrics.queued == 0


async def test_duration_stops_at_the_end(mode):
    began = time.monotonic()
    async with functions.echo.options(mode=mode).open() as stream:
        await asyncio.sleep(0.05)
        await stream.end()
        await drain(stream)
        first = stream.metrics.duration
        assert 0.05 <= first <= time.monotonic() - began
        await asyncio.sleep(0.05)
        assert stream.metrics.duration == first


async def test_metrics_outlive_the_stream(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        await stream.send(1)
        await stream.recv()
    assert stream.metrics.events == 1
    assert stream.metrics.results == 1
    assert stream.metrics.latency_p50 is not None


async def test_a_function_counts_all_its_streams(mode):
    echo = functions.echo.options(mode=mode)
    assert echo.metrics == (0, 0, 0, 0, 0, 0, 0, 0, None, None, None, 0, 0, 0, 0)
    assert await echo.run([1, 2, 3]) == [1, 2, 3]
    async with echo.open() as stream:
        await stream.send(4)
        assert await stream.recv() == 4
        await until(lambda: echo.metrics.queued == 0)
        metrics = echo.metrics
        assert (metrics.opened, metrics.open, metrics.events, metrics.results) == (2, 1, 4, 4)
        assert (metrics.bytes_in > 0) == (metrics.bytes_out > 0) == (mode == "process")
        assert 0 < metrics.latency_p50 <= metrics.latency_p95 <= metrics.latency_p99
    del stream
    assert (echo.metrics.opened, echo.metrics.open) == (2, 0)
    assert (echo.metrics.events, echo.metrics.results) == (4, 4)


async def test_settings_of_its_own_count_for_themselves(mode):
    echo = functions.echo.options(mode=mode)
    other = echo.options(buffer=8)
    assert await echo.run([1]) == [1]
    assert (echo.metrics.opened, other.metrics.opened) == (1, 0)


async def test_a_functions_streams_are_counted_by_key(mode):
    echo = functions.echo.options(mode=mode)
    results = [result async for _, result in echo.keyed(range(10), key=lambda event: event % 3)]
    assert sorted(results) == list(range(10))
    metrics = echo.metrics
    assert (metrics.opened, metrics.events, metrics.results) == (3, 10, 10)


async def test_latency_of_rare_events_ends_with_the_event(way):
    """A pause between two events is no part of how long either took."""
    longest = 0.0

    async def take_one(stream):
        nonlocal longest
        begun = time.perf_counter()
        await stream.send(1)
        await stream.recv()
        while (progress := stream._progress())[0] != progress[1]:
            await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - begun)
        # Far longer than an event takes, so that the pause would show. Nothing waits for it.
        await asyncio.sleep(4 * longest + 0.1)

    async with way.open(functions.echo) as stream:
        for _ in range(4):
            await take_one(stream)
        # The histogram has steps of 6 %.
        assert stream.metrics.latency_p99 <= 1.07 * longest * 1e6
        await take_one(stream)
    # Nor is the pause before the stream closes.
    assert stream.metrics.latency_p99 <= 1.07 * longest * 1e6
