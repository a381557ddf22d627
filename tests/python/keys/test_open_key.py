"""Streams that are kept under a key, in both modes: attaching, detaching, waiting in line."""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import re

import pytest

import functions
from helpers import HANG, ask, blocked, cancel, drain, until
from velo import stream_fn
from velo.errors import PoolError, StreamBusy, StreamClosed

pytestmark = pytest.mark.every_backend
_numbers = itertools.count()


@pytest.fixture
def key(request):
    """One that nobody has used before, also where a supervisor is shared by all tests."""
    return f"{request.node.name}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def counting(mode):
    """A function that counts, and yields the number of each event with it."""
    return functions.numbered.options(mode=mode, timeout=20)


async def test_local_variables_live_from_one_attachment_to_the_next(counting, key):
    assert [await ask(counting, key, letter) for letter in "abc"] == [(1, "a"), (2, "b"), (3, "c")]


async def test_without_a_key_nothing_is_kept(counting, key):
    assert await ask(counting, key, "a") == (1, "a")
    assert await ask(counting, None, "b") == (1, "b")
    assert await ask(counting, key, "c") == (2, "c")


@pytest.mark.parametrize("other", ["b", b"a", 1, ("a",), ("a", "b"), ("ab",), (("a",), "b"), ""])
async def test_keys_that_differ_are_different_streams(counting, key, other):
    assert await ask(counting, (key, "a"), 0) == (1, 0)
    assert await ask(counting, (key, other), 0) == (1, 0)
    assert await ask(counting, (key, "a"), 0) == (2, 0)


async def test_functions_have_keys_of_their_own(counting, mode, key):
    assert await ask(counting, key, 5) == (1, 5)
    assert await ask(functions.running_sum.options(mode=mode, timeout=20), key, 5) == 5
    assert await ask(counting, key, 5) == (2, 5)


async def test_other_settings_mean_the_same_stream(counting, key):
    assert await ask(counting, key, 0) == (1, 0)
    assert await ask(counting.options(buffer=3, max_bytes=65536, full="error"), key, 0) == (2, 0)


async def test_a_closure_and_a_chain(mode, key):
    step = 10

    @stream_fn(mode=mode, timeout=20)
    async def steps(events):
        total = 0
        async for _ in events:
            total += step
            yield total

    assert [await ask(steps, key, None) for _ in range(2)] == [10, 20]
    chain = steps | functions.running_sum.options(mode=mode, timeout=20)
    assert [await ask(chain, key, None) for _ in range(3)] == [10, 30, 60]


@pytest.mark.parametrize("wrong", [1.5, True, object(), ["a"], ("a", None)])
async def test_what_is_no_key(counting, wrong):
    with pytest.raises(TypeError, match="a key is a string, bytes, an integer"):
        await counting.open(key=wrong)


async def test_replay_does_not_go_together_with_a_key(counting, key):
    with pytest.raises(ValueError, match=r"open\(key=\.\.\.\)` does not go together with"):
        await counting.options(recover="replay").open(key=key)


async def test_detaching_waits_until_what_was_sent_is_handled(mode, key, tmp_path):
    slow = functions.marks_slowly.options(mode=mode, timeout=20)
    async with slow.open(key=key) as stream:
        await stream.send_batch([str(tmp_path / "marks")] * 5)
    assert functions.marks(tmp_path / "marks") == "x" * 5
    assert stream.closed
    with pytest.raises(StreamClosed, match="detached from key"):
        await stream.send(1)
    with pytest.raises(StreamClosed, match="detached from key"):
        await stream.recv()


async def test_results_that_nobody_took_are_not_the_next_ones(counting, key):
    async with counting.open(key=key) as stream:
        await stream.send_batch(range(500))  # more results than fit
    assert await ask(counting, key, "mine") == (501, "mine")


async def test_a_task_that_receives_gets_all_of_it(counting, key):
    async with counting.options(buffer=2).open(key=key) as stream:
        task = asyncio.create_task(drain(stream))
        await asyncio.sleep(0)
        await stream.send_batch(range(20))
    assert await task == [(number + 1, number) for number in range(20)]


async def test_leaving_by_an_exception_keeps_it(counting, key):
    with pytest.raises(ZeroDivisionError):
        async with counting.open(key=key) as stream:
            await stream.send_batch("ab")
            raise ZeroDivisionError
    assert await ask(counting, key, "c") == (3, "c")


async def test_leaving_by_cancellation_keeps_it(counting, key):
    held = asyncio.Event()

    async def hold():
        async with counting.open(key=key) as stream:
            await stream.send("a")
            await stream.recv()
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    async with asyncio.timeout(HANG):
        await held.wait()
    await cancel(task)
    assert await ask(counting, key, "b") == (2, "b")


async def test_a_source_that_fails_only_detaches(counting, key):
    def source():
        yield "a"
        raise ZeroDivisionError

    async with counting.open(key=key) as stream:
        with pytest.raises(ZeroDivisionError):
            async for _ in stream.feed(source()):
                pass
    assert await ask(counting, key, "b") == (2, "b")


async def test_feeding(counting, key):
    for first in (1, 4):
        async with counting.open(key=key) as stream:
            found = [result async for result in stream.feed("abc")]
            assert found == list(zip(range(first, first + 3), "abc", strict=True))
            assert [result async for result in stream.feed([])] == []
            assert stream.metrics.events == 3


async def test_one_at_a_time_and_first_come_first_served(counting, key):
    order = []

    async def turn(number):
        async with counting.open(key=key) as stream:
            order.append(number)
            for _ in range(3):
                await stream.send(number)
                assert (await stream.recv())[1] == number

    async with counting.open(key=key):
        tasks = []
        for number in range(10):
            tasks.append(asyncio.create_task(turn(number)))
            assert await blocked(tasks[-1], 2)
        assert order == []
    await asyncio.gather(*tasks)
    assert order == list(range(10))
    assert await ask(counting, key, None) == (31, None)


async def test_overflow_error_tells_instead_of_waiting(counting, key):
    impatient = counting.options(overflow="error")
    async with counting.open(key=key):
        with pytest.raises(
            StreamBusy, match=f"key `{re.escape(key)}` of `numbered` has an attachment"
        ):
            await impatient.open(key=key)
    assert await ask(impatient, key, "a") == (1, "a")


async def test_a_cancelled_wait_leaves_the_line(counting, key):
    async with counting.open(key=key) as stream:
        tasks = [asyncio.create_task(ask(counting, key, number)) for number in range(3)]
        assert await blocked(tasks[1])
        await cancel(tasks[1])
        await stream.send("a")
        assert await stream.recv() == (1, "a")
    assert await tasks[0] == (2, 0)
    assert await tasks[2] == (3, 2)


async def test_storm_of_cancelled_opens(counting, key):
    """Whenever an open is cancelled, the next one has its turn."""
    for number in range(60):
        task = asyncio.create_task(ask(counting, key, number))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0002 * (number % 7))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    async with asyncio.timeout(HANG):
        count, event = await ask(counting, key, "last")
    assert event == "last"
    assert 1 <= count <= 61


async def test_the_timeout_begins_when_nobody_is_attached(mode, key, tmp_path):
    ends = functions.marks_its_end.options(mode=mode, timeout=0.2)
    async with ends.open(key=key) as stream:
        await stream.send(str(tmp_path / "end"))
        assert await stream.recv() == 1
        await asyncio.sleep(0.5)
        await stream.send(str(tmp_path / "end"))
        assert await stream.recv() == 2
    await until(lambda: functions.marks(tmp_path / "end") == "x")
    async with ends.open(key=key) as stream:
        await stream.send(str(tmp_path / "end"))
        assert await stream.recv() == 1


async def test_without_a_timeout_it_stays(mode, key):
    counting = functions.numbered.options(mode=mode)
    assert await ask(counting, key, "a") == (1, "a")
    await asyncio.sleep(0.3)
    assert await ask(counting, key, "b") == (2, "b")
    async with counting.open(key=key) as stream:
        await stream.end()


async def test_end_ends_it_for_good(mode, key):
    collects = functions.after_loop.options(mode=mode, timeout=20)
    async with collects.open(key=key) as stream:
        await stream.send("a")
    async with collects.open(key=key) as stream:
        await stream.send("b")
        waiting = asyncio.create_task(collects.open(key=key).__aenter__())
        await stream.end()
        assert await drain(stream) == ["a", "b", "done"]
    async with await waiting as stream:
        await stream.end()
        assert await drain(stream) == ["done"]


async def test_a_failure_is_whose_events_it_came_of(mode, key):
    fails = functions.fails_at_zero.options(mode=mode, timeout=20)
    assert await ask(fails, key, 4) == 0.25
    with pytest.raises(ZeroDivisionError):
        await ask(fails, key, 0)
    assert await ask(fails, key, 2) == 0.5
    with pytest.raises(ZeroDivisionError):
        async with fails.open(key=key) as stream:
            waiting = asyncio.create_task(ask(fails, key, 8))
            assert await blocked(waiting, 2)
            await stream.send(0)
    assert await waiting == 0.125


async def test_a_failure_while_nobody_is_attached_is_logged(mode, key, caplog, tmp_path):
    fails = functions.fails_at_a_tick.options(mode=mode, timeout=20)
    gate = tmp_path / "gate"
    assert await ask(fails, key, str(gate)) == 1
    gate.touch()
    await until(lambda: "nobody was attached" in caplog.text)
    [record] = [r for r in caplog.records if "nobody was attached" in r.getMessage()]
    assert record.levelno == logging.ERROR
    assert "ZeroDivisionError" in caplog.text
    assert await ask(fails, key, str(tmp_path / "another gate")) == 1


async def test_a_detached_function_goes_on_by_itself(mode, key, tmp_path):
    """What it yields meanwhile is nobody's."""
    ticking = functions.counts_ticks.options(mode=mode, timeout=2 * HANG)
    async with ticking.open(key=key) as stream:
        await stream.send(str(tmp_path / "ticks"))
    before = len(functions.marks(tmp_path / "ticks"))
    await until(lambda: len(functions.marks(tmp_path / "ticks")) > before + 300)
    meanwhile = len(functions.marks(tmp_path / "ticks"))
    async with ticking.open(key=key) as stream:
        await stream.end()
        assert all(number >= meanwhile for number in await drain(stream))


async def test_a_function_that_never_reads(mode, key):
    """Nothing was sent, so there is nothing to wait for."""
    never = functions.never_reads.options(mode=mode, timeout=20)
    for expected in (["ready"], []):
        async with asyncio.timeout(HANG), never.open(key=key) as stream:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1 if not expected else None):
                    assert await stream.recv() == expected[0]


async def test_one_that_takes_too_long_keeps_the_next_one_waiting(mode, key, tmp_path):
    waits = functions.waits_for_a_file.options(mode=mode, timeout=20, close_timeout=0.1)
    async with asyncio.timeout(HANG):
        async with waits.open(key=key) as stream:
            await stream.send(str(tmp_path / "go"))
        waiting = asyncio.create_task(ask(waits, key, str(tmp_path / "go")))
        assert await blocked(waiting, 50)
        functions.mark(tmp_path / "go")
        assert await waiting == 2


async def test_a_stream_that_is_dropped_detaches(counting, key):
    stream = await counting.open(key=key)
    await stream.send("a")
    with pytest.warns(ResourceWarning, match="was never closed"):
        del stream
        gc.collect()
    async with asyncio.timeout(HANG):
        assert await ask(counting, key, "b") == (2, "b")


async def test_streams_with_a_key_count_while_they_live(counting, key):
    limited = counting.options(max_concurrent=2, overflow="error")
    assert await ask(limited, (key, 1), 0) == (1, 0)
    assert await ask(limited, (key, 2), 0) == (1, 0)
    with pytest.raises(PoolError, match="2 open streams"):
        await ask(limited, (key, 3), 0)
    assert await ask(limited, (key, 1), 0) == (2, 0)
    async with limited.open(key=(key, 1)) as stream:
        await stream.end()
        assert await drain(stream) == []
    async with asyncio.timeout(HANG):
        while True:
            with contextlib.suppress(PoolError):
                assert await ask(limited, (key, 3), 0) == (1, 0)
                break
            await asyncio.sleep(0.01)


async def test_a_place_is_waited_for(counting, key):
    limited = counting.options(max_concurrent=1, timeout=0.2)
    assert await ask(limited, (key, 1), 0) == (1, 0)
    async with asyncio.timeout(HANG):
        assert await ask(limited, (key, 2), 0) == (1, 0)
