"""Limits of live keys: `max_pending`, `buffer`, idle and finished keys."""

import asyncio
import time
import warnings

import pytest

import functions
from functions import OwnError
from helpers import HANG, blocked, cancel, until
from live_functions import counts, gated, gated_runs, read, two
from velo import stream_fn
from velo.errors import (
    BufferFull,
    StreamClosed,
)


async def test_unread_results_count_for_max_pending(mode):
    async with functions.echo.options(mode=mode).keys(max_pending=10) as keys:

        async def send_all():
            for number in range(100):
                await keys.send(number % 3, number)

        sending = asyncio.create_task(send_all())
        await until(lambda: keys.metrics.unread == 10)
        assert await blocked(sending)
        asked = asyncio.create_task(keys.request("a", "asked"))
        assert await blocked(asked)
        got = await read(keys, 100)
        assert sorted(number for _, number in got) == [*range(100)]
        await sending
        assert await asked == ["asked"]


async def test_a_function_waits_for_its_reader(mode):
    """More results of one event than there is room for."""
    async with functions.repeat.options(mode=mode).keys(max_pending=50) as keys:
        await keys.send("a", 5000)
        await until(lambda: keys.metrics.unread >= 50)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert keys.metrics.results < 5000
        assert len(await read(keys, 5000)) == 5000


async def test_full_error(mode):
    async with functions.echo.options(mode=mode, full="error").keys(max_pending=3) as keys:
        for number in range(3):
            await keys.send("a", number)
        with pytest.raises(BufferFull):
            await keys.send("a", 3)
        assert await read(keys, 3) == [("a", 0), ("a", 1), ("a", 2)]
        await until(lambda: keys.metrics.queued == 0)
        await keys.send("a", 4)


async def test_a_task_that_waits_for_its_own_reader_is_warned(mode):
    async with functions.echo.options(mode=mode).keys(max_pending=4) as keys:

        async def send_and_receive():
            for number in range(20):
                await keys.send("a", number)
            return await read(keys, 20)

        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            sending = asyncio.create_task(send_and_receive())
            await until(lambda: any("waited for 5 s to send" in str(w.message) for w in seen))
        [message] = [str(w.message) for w in seen if "waited for" in str(w.message)]
        assert "the keys of `echo`" in message
        assert "async for key, result in keys" in message
        assert not sending.done()
        await cancel(sending)
        await keys.end_all()
        got = [number async for _, number in keys]
        assert got == [*range(len(got))]


async def test_a_cancelled_send_has_sent_nothing(mode):
    async with functions.echo.options(mode=mode).keys(max_pending=2) as keys:
        await keys.send("a", 0)
        await keys.send("a", 1)
        waiting = [asyncio.create_task(keys.send("a", number)) for number in (2, 3)]
        assert all([await blocked(task, turns=3) for task in waiting])
        await cancel(waiting[0])
        assert await read(keys, 3) == [("a", 0), ("a", 1), ("a", 3)]
        await waiting[1]


async def test_tasks_in_line_get_room_in_their_order(mode):
    async with functions.echo.options(mode=mode).keys(max_pending=1) as keys:
        sending = [asyncio.create_task(keys.send("a", number)) for number in range(20)]
        assert await read(keys, 20) == [("a", number) for number in range(20)]
        await asyncio.gather(*sending)


class SlowToHash(str):
    """Each use of it takes longer than a task's turn with the keys."""

    __slots__ = ()

    def __hash__(self):
        time.sleep(0.001)
        return super().__hash__()


async def test_tasks_send_in_the_order_in_which_they_begin(mode):
    """Also where each of them lets others run before it sends."""
    async with functions.echo.options(mode=mode).keys() as keys:
        key = SlowToHash("a")
        tasks = [asyncio.create_task(keys.send(key, number)) for number in range(20)]
        await asyncio.sleep(0)
        await cancel(tasks.pop(3))  # it has let others run, and sends nothing
        assert await read(keys, 19) == [("a", number) for number in (0, 1, 2, *range(4, 20))]
        await asyncio.gather(*tasks)


async def test_room_that_a_task_was_given_is_its_own(mode):
    """A task that begins before that one has gone on waits behind it."""
    async with functions.echo.options(mode=mode).keys(max_pending=2) as keys:
        for number in range(2):
            await keys.send("a", number)
        await until(lambda: keys.metrics.unread == 2)
        waits = asyncio.create_task(keys.send("a", 2))
        assert await blocked(waits)
        assert await read(keys, 2) == [("a", 0), ("a", 1)]
        await keys.send("a", 3)
        assert waits.done()
        assert await read(keys, 2) == [("a", 2), ("a", 3)]


async def test_room_of_a_send_that_fails_goes_to_the_next(mode, tmp_path):
    gates = [str(tmp_path / name) for name in ("first", "second")]
    async with gated.options(mode=mode).keys(max_pending=2) as keys:
        first, second = (asyncio.create_task(keys.request(gate, gate)) for gate in gates)
        assert await blocked(first)
        assert await blocked(second)
        wrong = asyncio.create_task(keys.send([], "no key"))
        right = asyncio.create_task(keys.request("a", 1))
        assert await blocked(wrong)
        assert await blocked(right)
        functions.mark(gates[0])
        with pytest.raises(TypeError):
            await wrong
        assert await right == [1]
        functions.mark(gates[1])
        assert await asyncio.gather(first, second) == [[gate] for gate in gates]


async def test_tasks_request_in_the_order_in_which_they_begin(mode):
    async with counts.options(mode=mode).keys() as keys:
        key = SlowToHash("a")
        answers = await asyncio.gather(*(keys.request(key, number) for number in range(20)))
        assert answers == [[(number, number + 1)] for number in range(20)]


async def test_a_slow_key_holds_up_no_other(mode, tmp_path):
    gate = str(tmp_path / "gate")
    async with gated.options(mode=mode, buffer=2).keys() as keys:
        await keys.send("slow", gate)
        for number in range(500):
            await keys.send("slow", number)
            assert await keys.request("fast", number) == [number]
        functions.mark(gate)
        assert await read(keys, 501) == [("slow", event) for event in [gate, *range(500)]]


async def test_idle_keys_end(mode):
    async with counts.options(mode=mode, timeout=0.1).keys() as keys:
        assert await keys.request("a", 1) == [(1, 1)]
        assert await asyncio.wait_for(read(keys, 1), HANG) == [("a", ("end", 1))]
        assert await keys.request("a", 1) == [(1, 1)]


async def test_the_least_recently_used_is_forced_out(mode):
    async with counts.options(mode=mode, max_concurrent=2).keys() as keys:
        for key in "abaca":
            await keys.request(key, key)
        assert await read(keys, 1) == [("b", ("end", 1))]
        assert await keys.request("a", 1) == [(1, 4)]
        assert await keys.request("b", 1) == [(1, 1)]  # anew
        assert keys.metrics.evicted == 2


@pytest.mark.parametrize("first", ["waits", "fails"])
async def test_a_key_that_begins_anew_and_ends_gets_its_place(mode, tmp_path, first):
    """Also where no other key waits for the place that it gives back."""
    gate = str(tmp_path / "gate")
    settings = {"mode": mode, "buffer": 1, "max_concurrent": 1}
    async with gated_runs.options(**settings).keys(on_error="drop") as keys:
        await keys.send("a", gate)
        if first == "fails":
            await keys.send("a", OwnError("at an event"))
        else:
            await keys.send("b", 1)  # a makes room for it
        await keys.send("a", 2)
        await keys.end("a")
        await keys.send("b", 3)
        functions.mark(gate)
        seen = []
        while not {("a", 2), ("b", 3)} <= set(seen):
            seen += await read(keys, 1)
        assert [result for key, result in seen if key == "a" and result != "end"] == [gate, 2]


async def test_finished_keys(mode):
    first_two = two.options(mode=mode)
    async with first_two.keys() as keys:
        answers = [await keys.request("a", number) for number in range(4)]
        assert answers == [[0], [1], [], []]
        assert keys.metrics.dropped == 2
    async with first_two.keys(finished_keys="raise") as keys:
        answers = [await keys.request("a", number) for number in range(2)]
        assert answers == [[0], [1]]
        for attempt in (keys.send, keys.request):
            with pytest.raises(StreamClosed, match="key 'a', whose function has returned"):
                await attempt("a", 2)
        assert await keys.request("b", 0) == [0]  # the others go on
    async with first_two.keys(finished_keys="restart") as keys:
        # All at once: none is lost that was on its way when the function returned.
        answers = await asyncio.gather(*(keys.request("a", number) for number in range(7)))
        assert answers == [[number] for number in range(7)]


@pytest.mark.parametrize("buffer", [1, 8], ids=["few", "all"])
async def test_events_that_a_function_has_left_go_to_on_error(mode, buffer, tmp_path):
    """With `finished_keys="raise"`: the tasks that have sent them wait no more."""
    gate = tmp_path / "gate"

    @stream_fn(mode=mode, buffer=buffer)
    async def first(events):
        async for event in events:
            while not gate.exists():
                await asyncio.sleep(0.001)
            yield event
            return

    told = []
    settings = {"finished_keys": "raise", "on_error": lambda *what: told.append(what)}
    async with first.keys(**settings) as keys:
        for number in range(4):
            await keys.send("a", number)
        asked = asyncio.create_task(keys.request("a", 4))
        await until(lambda: keys.metrics.events == 5)
        gate.touch()
        assert await read(keys, 1) == [("a", 0)]
        with pytest.raises(StreamClosed, match="key 'a', whose function has returned"):
            await asked
        assert await keys.request("b", 0) == [0]  # the others go on
    assert [(key, type(error)) for key, error in told] == [("a", StreamClosed)]
    told.clear()
    async with first.keys(**settings) as keys:
        assert await keys.request("a", 0) == [0]
    assert not told


async def test_restart_loses_no_event_that_was_on_its_way(mode):
    events = [("a", number) for number in range(9)]
    results = two.options(mode=mode).keyed(events, key=0, finished_keys="restart")
    assert [number async for _, (_, number) in results] == [*range(9)]
