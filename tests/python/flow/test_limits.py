"""`max_concurrent`, `timeout` and the largest event."""

import asyncio
import contextlib
import threading
import time

import pytest

import functions
from helpers import HANG, blocked, drain, until
from velo import stream_fn
from velo._api import idle
from velo.errors import EventTooLarge, PoolError, StreamClosed

# A timeout that no stream reaches in a test, but on the clock that `pass_time` moves.
LONG = 60.0


async def pass_time(seconds):
    """Moves the clock of streams with a `timeout`, and lets their timer go off."""
    functions.move_clock(seconds)
    idle.age(asyncio.get_running_loop(), seconds)
    for _ in range(3):
        await asyncio.sleep(0)


async def open_it(fn):
    return await fn.open()


async def test_open_waits_for_a_place(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=2)
    one, two = await limited.open(), await limited.open()
    waiting = asyncio.create_task(open_it(limited))
    assert await blocked(waiting)
    await one.aclose()
    three = await asyncio.wait_for(waiting, HANG)
    await three.aclose()
    await two.aclose()


async def test_places_are_given_in_line(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=1)
    order = []

    async def use(number):
        async with limited.open():
            order.append(number)
            await asyncio.sleep(0)

    async with limited.open():
        tasks = []
        for number in range(10):
            tasks.append(asyncio.create_task(use(number)))
            await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*tasks), HANG)
    assert order == list(range(10))


async def test_a_newcomer_does_not_overtake(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=1)
    stream = await limited.open()
    waiting = asyncio.create_task(open_it(limited))
    await blocked(waiting, 3)
    await stream.aclose()
    newcomer = asyncio.create_task(open_it(limited))
    first = await asyncio.wait_for(waiting, HANG)
    assert await blocked(newcomer)
    await first.aclose()
    await (await asyncio.wait_for(newcomer, HANG)).aclose()


async def test_overflow_error(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=1, overflow="error")
    async with limited.open():
        with pytest.raises(PoolError, match="`echo` has 1 open streams.*max_concurrent"):
            await limited.open()
    async with limited.open():
        pass


async def test_each_function_has_its_own_places(mode):
    settings = {"mode": mode, "max_concurrent": 1, "overflow": "error"}
    one, other = functions.echo.options(**settings), functions.running_sum.options(**settings)
    async with one.open(), other.open(), one.options().open():
        pass


@pytest.mark.parametrize("how", ["close", "error", "function error", "early return", "garbage"])
async def test_a_place_comes_back_however_a_stream_ends(mode, how):
    limited = functions.fails.options(mode=mode, max_concurrent=1, overflow="error")
    if how == "early return":
        limited = functions.returns_at_once.options(mode=mode, max_concurrent=1, overflow="error")
    for _ in range(3):
        if how == "garbage":
            stream = await limited.open()
            with pytest.warns(ResourceWarning, match="never closed"):
                del stream
                import gc

                gc.collect()
            continue
        with contextlib.suppress(ZeroDivisionError, functions.OwnError):
            async with limited.open() as stream:
                if how == "error":
                    _ = 1 / 0
                elif how == "function error":
                    await stream.send("own")
                    await stream.recv()
                elif how == "early return":
                    await drain(stream)


async def test_places_hold_over_threads(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=1)
    order = []

    def other():
        async def use():
            async with limited.open():
                order.append("other")

        asyncio.run(use())

    async with limited.open():
        thread = threading.Thread(target=other)
        thread.start()
        await until(lambda: limited._spec.limiter.contended)
        order.append("first")
    await asyncio.to_thread(thread.join, HANG)
    assert order == ["first", "other"]


async def test_failed_open_gives_its_place_back():
    lock = threading.Lock()

    @stream_fn(mode="process", max_concurrent=1, overflow="error")
    async def cannot_travel(events):
        yield lock

    for _ in range(3):
        with pytest.raises(TypeError, match="cannot be sent"):
            await cannot_travel.open()


async def test_idle_timeout_ends_the_input(mode):
    async with functions.after_loop.options(mode=mode, timeout=0.1).open() as stream:
        await stream.send(1)
        began = time.monotonic()
        assert await asyncio.wait_for(drain(stream), HANG) == [1, "done"]
        assert time.monotonic() - began >= 0.09
        with pytest.raises(StreamClosed, match=r"idle for 0\.1 s"):
            await stream.send(2)


async def test_idle_timeout_of_a_stream_that_was_never_used(mode):
    async with functions.after_loop.options(mode=mode, timeout=0.05).open() as stream:
        assert await asyncio.wait_for(drain(stream), HANG) == ["done"]


async def test_sending_is_use(mode):
    async with functions.echo.options(mode=mode, timeout=LONG).open() as stream:
        for _ in range(4):
            await stream.send(1)
            assert await stream.recv() == 1
            await pass_time(0.6 * LONG)
            assert not stream.closed
        async with asyncio.timeout(3600 * LONG):
            while (
                not stream.closed
            ):  # the timer may have yet to see that the last event was handled
                await pass_time(LONG)


@pytest.mark.parametrize("how", ["recv", "batch", "iterate"])
async def test_receiving_is_use(mode, how):
    """Results that come by themselves keep a stream alive as long as somebody takes them."""
    async with functions.ticker.options(mode=mode, timeout=LONG, buffer=1).open() as stream:
        got = 0
        if how == "iterate":
            async for _ in stream:
                await pass_time(0.3 * LONG)
                got += 1
                if got == 20:
                    break
        else:
            while got < 20:
                got += 1 if how == "recv" and [await stream.recv()] else 0
                got += len(await stream.recv_batch()) if how == "batch" else 0
                await pass_time(0.3 * LONG)
        assert not stream.closed
        await stream.send("still open")
        assert await stream.recv() == "still open"


async def test_working_is_use(mode, tmp_path):
    """A stream is not idle while the function works on an event."""

    @stream_fn(mode=mode, timeout=LONG)
    async def works(events):
        async for gate in events:
            while not gate.exists():
                await asyncio.sleep(0.002)
            yield gate

    async with works.open() as stream:
        for number in range(2):
            gate = tmp_path / str(number)
            await stream.send(gate)
            await pass_time(3 * LONG)
            assert not stream.closed
            gate.touch()
            assert await stream.recv() == gate


async def test_many_streams_time_out(mode):
    timed = functions.echo.options(mode=mode, timeout=0.1)
    streams = [await timed.open() for _ in range(200)]
    tasks = len(asyncio.all_tasks())
    await until(lambda: all(stream.closed for stream in streams))
    assert tasks < 250
    for stream in streams:
        await stream.aclose()


async def test_a_stream_without_timeout_stays(mode):
    echo = functions.echo.options(mode=mode)
    async with echo.options(timeout=0.05).open() as timed, echo.open() as stream:
        await until(lambda: timed.closed)
        assert not stream.closed


@pytest.mark.parametrize("size", [600_000, 50_000_000])
async def test_event_too_large(size):
    async with functions.echo.options(mode="process", max_bytes=1_000_000).open() as stream:
        with pytest.raises(EventTooLarge) as info:
            await stream.send(bytes(size))
        assert "max_bytes" in str(info.value)
        assert isinstance(info.value, ValueError)
        await stream.send(bytes(400_000))
        assert len(await stream.recv()) == 400_000
        with pytest.raises(EventTooLarge):
            await stream.send_batch([b"1", bytes(size), b"2"])
        assert await stream.recv() == b"1"
        with pytest.raises(EventTooLarge):
            async for _ in stream.feed([bytes(size)]):
                pass
        await stream.send(2)
        assert await stream.recv() == 2


async def test_result_too_large_fails_at_its_yield():
    @stream_fn(mode="process", max_bytes=1_000_000)
    async def makes(events):
        async for event in events:
            try:
                yield bytes(event)
            except ValueError as error:
                yield type(error).__name__

    assert await makes.run([600_000, 5]) == ["EventTooLarge", bytes(5)]


async def test_no_event_is_too_large_inline():
    results = await functions.echo.options(mode="inline", max_bytes=4096).run([bytes(100_000)])
    assert results == [bytes(100_000)]


async def test_workers_bound_the_processes():
    async def pids(count):
        fn = functions.pids.options(mode="process", workers=count)
        streams = [await fn.open() for _ in range(6)]
        found = set()
        for stream in streams:
            await stream.send(0)
            found.add(await stream.recv())
        for stream in streams:
            await stream.aclose()
        return found

    assert len(await pids(1)) == 1
    assert len(await pids(2)) == 2
    assert len(await pids(3)) == 3


async def test_idle_streams_share_one_timer(mode):
    """Ten thousand streams with a timeout cost the loop one timer, and no task each."""
    loop = asyncio.get_running_loop()
    echo = functions.echo.options(mode=mode, timeout=3600)

    def pending():
        return sum(not timer.cancelled() for timer in loop._scheduled)

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(echo.open())
        timers, tasks = pending(), len(asyncio.all_tasks())
        for _ in range(200):
            await stack.enter_async_context(echo.open())
        assert pending() == timers
        assert len(asyncio.all_tasks()) - tasks == (200 if mode == "inline" else 0)
