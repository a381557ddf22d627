"""`run` and `run_sync`."""

import asyncio
import threading

import pytest

import functions
from functions import OwnError
from helpers import HANG, NO_SLOW_STEPS, open_fds, run_script, until_sync
from velo import stream_fn
from velo.errors import VeloError


async def test_run(mode):
    assert await functions.running_sum.options(mode=mode).run([1, 2, 3]) == [1, 3, 6]


async def test_run_takes_what_comes_after_the_loop(mode):
    assert await functions.after_loop.options(mode=mode).run("ab") == ["a", "b", "done"]


async def test_run_waits_for_a_slow_last_result(mode):
    assert await functions.slow_after_loop.options(mode=mode).run(range(5)) == [5]


async def test_run_of_nothing(mode):
    assert await functions.after_loop.options(mode=mode).run([]) == ["done"]
    assert await functions.echo.options(mode=mode).run(iter([])) == []


async def test_run_of_async_source(mode):
    async def source():
        for number in range(500):
            yield number

    assert await functions.echo.options(mode=mode).run(source()) == list(range(500))


async def test_runs_share_nothing(mode):
    summing = functions.running_sum.options(mode=mode)
    results = await asyncio.gather(*(summing.run([n, n]) for n in range(20)))
    assert results == [[n, 2 * n] for n in range(20)]


async def test_runs_of_different_functions_at_once(mode):
    one, other = (
        functions.running_sum.options(mode=mode, workers=1),
        functions.echo.options(mode=mode, workers=1),
    )
    assert await asyncio.gather(one.run([1, 1]), other.run([1, 1])) == [[1, 2], [1, 1]]


async def test_failing_source(mode):
    def source():
        yield 1
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        await functions.echo.options(mode=mode).run(source())


async def test_failing_async_source(mode):
    async def source():
        yield 1
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        await functions.echo.options(mode=mode).run(source())


async def test_failing_function_closes_the_async_source(mode):
    closed = asyncio.Event()

    async def source():
        try:
            yield "own"
            while True:
                await asyncio.sleep(0.001)
                yield 1
        finally:
            closed.set()

    with pytest.raises(OwnError):
        await functions.fails.options(mode=mode).run(source())
    await asyncio.wait_for(closed.wait(), HANG)


async def test_many_results(mode):
    events = list(range(30_000))
    assert await functions.echo.options(mode=mode).run(events) == events


async def test_large_and_small_events(mode):
    events = [bytes(size) for size in (0, 1, 100_000, 7, 3_000_000, 65_536, 1)]
    assert await functions.echo.options(mode=mode).run(events) == events


def test_run_sync(mode):
    summing = functions.running_sum.options(mode=mode)
    assert summing.run_sync([1, 2, 3]) == [1, 3, 6]
    assert summing.run_sync(iter([4])) == [4]


def test_run_sync_raises(mode):
    with pytest.raises(OwnError) as info:
        functions.fails.options(mode=mode).run_sync([1, "own"])
    assert info.value.__context__ is None  # no error of velo's own precedes it in the traceback
    assert functions.fails.options(mode=mode).run_sync([1]) == [1]


async def test_run_sync_inside_a_loop_is_refused(mode):
    with pytest.raises(VeloError, match=r"await .*run"):
        functions.echo.options(mode=mode).run_sync([1])


def test_run_sync_in_threads(mode):
    """Each thread has a loop of its own."""
    summing = functions.running_sum.options(mode=mode)
    results = {}

    def work(number):
        results[number] = [summing.run_sync([number, number]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert results == {n: [[n, 2 * n]] * 3 for n in range(6)}


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_threads_that_ran_leave_nothing(mode):
    import gc

    echo = functions.echo.options(mode=mode, workers=1)

    def once():
        thread = threading.Thread(target=lambda: echo.run_sync([1]))
        thread.start()
        thread.join(HANG)

    for _ in range(3):
        once()
    gc.collect()
    before = len(open_fds())
    for _ in range(20):
        once()
    gc.collect()
    until_sync(lambda: len(open_fds()) <= before + 3)


def test_loops_that_ran_leave_nothing(mode):
    import gc

    echo = functions.echo.options(mode=mode, workers=1)
    for _ in range(3):
        asyncio.run(echo.run([1]))
    gc.collect()
    before = len(open_fds())
    for _ in range(30):
        assert asyncio.run(echo.run([1])) == [1]
    gc.collect()
    until_sync(lambda: len(open_fds()) <= before + 3)


def test_run_inside_a_function(mode):
    """A stream function may use others."""
    inner = functions.running_sum.options(mode="inline")

    @stream_fn(mode=mode)
    async def outer(events):
        async for event in events:
            yield await inner.run(event)

    assert outer.run_sync([[1, 2], [3]]) == [[1, 3], [3]]


def test_process_mode_inside_a_worker():
    """A worker may have workers of its own, and they end with it."""
    inner = functions.pids.options(mode="process", workers=1)

    @stream_fn(mode="process", workers=1)
    async def outer(events):
        import os

        async for event in events:
            yield (os.getpid(), (await inner.run([event]))[0])

    ((mine, theirs),) = outer.run_sync([1])
    assert mine != theirs


def test_development_mode_has_nothing_to_say(tmp_path, mode):
    """No unclosed loop, no coroutine that was never awaited, no unretrieved exception."""
    script = f"""
        import asyncio, logging
        from velo import stream_fn

        # A busy machine makes slow steps, of which asyncio warns; what is wrong is an error.
        logging.getLogger("asyncio").setLevel(logging.ERROR)

        @stream_fn(mode={mode!r}, workers=1)
        async def double(events):
            async for event in events:
                yield event * 2

        async def main():
            async with double.open() as stream:
                async for result in stream.feed([1, 2]):
                    print(result)
            async for key, result in double.keyed([1, 2], key=lambda event: event):
                print(key, result)

        print(double.run_sync([1, 2]))
        asyncio.run(main())
    """
    code, output, errors = run_script(tmp_path, script, flags=["-X", "dev", "-W", NO_SLOW_STEPS])
    assert (code, errors) == (0, "")
    assert output.startswith("[2, 4]\n2\n4\n")
