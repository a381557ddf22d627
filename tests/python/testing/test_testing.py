"""`velo.testing`: time that passes by itself, workers that die on purpose, fixtures for pytest."""

import asyncio
import gc
import pickle
import time
import warnings

import pytest

from velo import stream_fn
from velo.errors import StreamClosed, WorkerDied
from velo.events import TICK
from velo.testing import VirtualClock, crash_at, run_virtual

pytest_plugins = ["pytester"]


@stream_fn
async def counts(events):
    count = 0
    async for _ in events:
        count += 1
        yield count


def now():
    return asyncio.get_running_loop().time()


def test_sleeping_takes_no_time():
    async def main():
        order = []

        async def sleeper(seconds):
            await asyncio.sleep(seconds)
            order.append((seconds, now()))

        await asyncio.gather(*map(sleeper, (3600, 1, 60)))
        return order

    assert run_virtual(main()) == [(1, 1), (60, 60), (3600, 3600)]


def test_ticks():
    @stream_fn
    async def ticking(events):
        async for event in events.ticks(30.0):
            yield (now(), "tick" if event is TICK else event)

    async def source():
        yield 1
        await asyncio.sleep(70)
        yield 2

    async def main():
        return await ticking.run(source())

    assert run_virtual(main()) == [(0, 1), (30, "tick"), (60, "tick"), (70, 2)]


def test_the_timeout_of_a_stream():
    async def main():
        async with counts.options(timeout=1800.0).open() as stream:
            for _ in range(3):
                await asyncio.sleep(1000)  # more than the timeout in all, and never at once
                await stream.send("event")
                await stream.recv()
            began = now()
            while not stream.closed:
                await asyncio.sleep(1)
            assert now() - began == pytest.approx(1800, abs=2)
            with pytest.raises(StreamClosed, match=r"idle for 1800.0 s"):
                await stream.send("event")

    run_virtual(main())


def test_a_timeout_longer_than_the_machine_has_been_up():
    async def main():
        decades = 1e9
        async with counts.options(timeout=decades).open() as stream:
            await stream.send("event")
            await stream.recv()
            await asyncio.sleep(decades / 2)
            assert not stream.closed
            await asyncio.sleep(decades)
            assert stream.closed

    run_virtual(main())


def test_the_closing_of_keys():
    async def clicks():
        yield "a"
        await asyncio.sleep(100)
        yield "b"
        await asyncio.sleep(100)
        yield "a"

    async def main():
        fn = counts.options(timeout=150.0)
        return [item async for item in fn.keyed(clicks(), key=lambda event: event)]

    assert run_virtual(main()) == [("a", 1), ("b", 1), ("a", 1)]


def test_a_deadline_comes_in_its_turn():
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        return now()

    assert run_virtual(main()) == 5


def test_time_can_be_moved_by_hand(virtual_clock):
    assert isinstance(virtual_clock, VirtualClock)
    virtual_clock.advance(10)
    assert virtual_clock.time() == 10
    assert virtual_clock.run_until_complete(asyncio.sleep(5, "x")) == "x"
    assert virtual_clock.time() == 15
    with pytest.raises(ValueError, match="at least 0"):
        virtual_clock.advance(-1)


def test_a_thread_is_waited_for():
    async def main():
        return await asyncio.to_thread(time.sleep, 0.05), now()

    assert run_virtual(main()) == (None, 0)


def test_threads_are_waited_for_at_the_end(virtual_clock):
    """In their own time, whatever bound `asyncio.run` has for them in the loop's."""
    ended = []

    def work():
        time.sleep(0.05)
        ended.append(True)

    virtual_clock.run_in_executor(None, work)
    with warnings.catch_warnings(action="error"):
        virtual_clock.run_until_complete(virtual_clock.shutdown_default_executor(300))
    assert ended
    assert virtual_clock.time() == 0


def test_a_worker_is_waited_for():
    async def main():
        return await counts.options(mode="process").run("abc")

    assert run_virtual(main()) == [1, 2, 3]


async def test_a_worker_dies_at_an_event_and_then_no_more():
    fn = crash_at(counts.options(mode="process"), 3)
    for crashes in (True, False):
        async with fn.open() as stream:
            for number in (1, 2):
                await stream.send("event")
                assert await stream.recv() == number
            await stream.send("event")
            if crashes:
                with pytest.raises(WorkerDied, match="SIGKILL"):
                    await stream.recv()
            else:
                assert await stream.recv() == 3


async def test_several_workers_die():
    fn = crash_at(counts.options(mode="process"), 1, times=2)
    ends = []
    for _ in range(3):
        try:
            ends.append(await fn.run(["event"]))
        except WorkerDied:
            ends.append("died")
    assert ends == ["died", "died", [1]]


@stream_fn
async def doubles(events):
    async for event in events:
        yield event * 2


@pytest.mark.parametrize(
    "made",
    [
        lambda fn: fn.options(buffer=8),
        lambda fn: fn | doubles.options(mode="process"),
        lambda fn: fn | doubles,
    ],
    ids=["options", "chain", "chain of two modes"],
)
async def test_a_function_made_of_one_that_crashes_crashes_too(made):
    fn = made(crash_at(counts.options(mode="process"), 2))
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await fn.run(["event"] * 3)
    assert len(await fn.run(["event"] * 3)) == 3


async def test_a_copy_that_cannot_crash_any_more_says_so():
    fn = pickle.loads(pickle.dumps(crash_at(counts.options(mode="process"), 2)))
    gc.collect()
    with pytest.raises(RuntimeError, match="`crash_at` has returned is gone"):
        await fn.run(["event"] * 3)


def test_what_would_end_the_test_is_refused():
    with pytest.raises(ValueError, match="inline, it would end this process"):
        crash_at(counts, 1)
    with pytest.raises(ValueError, match="at least 1"):
        crash_at(counts.options(mode="process"), 0)


def test_the_fixtures_of_pytest(pytester, tmp_path):
    pytester.makepyfile(
        steps="""
        from velo import stream_fn

        @stream_fn
        async def double(events):
            async for event in events:
                yield event * 2
        """,
        test_it="""
        import asyncio
        import pytest
        import steps
        from velo.testing import VirtualClock, replay

        @pytest.mark.recordings("kept")
        def test_recorded(recording):
            replay(recording, steps.double)

        def test_clock(virtual_clock):
            virtual_clock.run_until_complete(asyncio.sleep(1000))
            assert virtual_clock.time() == 1000

        def test_no_mark(recording):
            pass
        """,
    )
    made = pytester.runpython_c(
        "import steps; fn = steps.double.options(record='kept');fn.run_sync([1]); fn.run_sync('ab')"
    )
    assert made.ret == 0
    arguments = ("-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*`recording` needs a mark*"])
    steps = pytester.path / "steps.py"
    steps.write_text(steps.read_text().replace("* 2", "* 3"))
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(["*recorded: it yielded 2", "*now:      it yielded 3"])
