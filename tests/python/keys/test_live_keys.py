"""Keys whose events come from tasks: `fn.keys()`."""

import asyncio
import os

import pytest

import functions
from functions import OwnError
from helpers import HANG, blocked, cancel, one_is_refused, until
from key_sums import collect
from live_functions import counts, gated, gated_runs, read, repeats
from velo import stream_fn
from velo.errors import (
    StreamBusy,
    StreamClosed,
    VeloError,
)

pytestmark = pytest.mark.on_ray

# Requests.


async def test_a_request_returns_the_results_of_its_event(mode):
    async with repeats.options(mode=mode).keys() as keys:
        assert await keys.request("a", 2) == [0, 1]
        assert await keys.request("a", 0) == []
        await keys.send("a", 1)
        assert await keys.request("a", 3) == [0, 1, 2]
        # Neither in the iteration nor in another request.
        assert await read(keys, 2) == [("a", "hello"), ("a", 0)]
        await keys.end_all()
        assert [item async for item in keys] == []


async def test_requests_of_many_tasks_and_keys(mode):
    async with counts.options(mode=mode).keys() as keys:

        async def user(key):
            return [await keys.request(key, number) for number in range(10)]

        answers = await asyncio.gather(*map(user, range(200)))
        assert answers == [[[(n, n + 1)] for n in range(10)] for _ in range(200)]
        assert keys.metrics.open == 200
        assert keys.metrics.events == keys.metrics.results == 2000


async def test_requests_of_one_key_wait_for_one_another(mode, tmp_path):
    """They are answered in order, each with its own results."""
    gate = str(tmp_path / "gate")
    async with gated.options(mode=mode, buffer=2).keys() as keys:
        asked = [asyncio.create_task(keys.request("a", event)) for event in [gate, *range(6)]]
        assert await keys.request("b", 1) == [1]  # another key does not wait
        assert all([await blocked(task, turns=2) for task in asked])
        functions.mark(gate)
        assert await asyncio.gather(*asked) == [[gate], *([n] for n in range(6))]


async def test_what_belongs_to_no_event_is_in_the_iteration(mode):
    async with counts.options(mode=mode).keys() as keys:
        assert await keys.request("a", 5) == [(5, 1)]
        await keys.end("a")
        assert await read(keys, 1) == [("a", ("end", 1))]


async def test_a_cancelled_request_loses_nothing_else(mode, tmp_path):
    gate = str(tmp_path / "gate")
    async with gated.options(mode=mode).keys() as keys:
        waiting = asyncio.create_task(keys.request("a", gate))
        behind = asyncio.create_task(keys.request("a", 2))
        await keys.send("a", 3)
        assert await blocked(waiting)
        await cancel(waiting)
        functions.mark(gate)
        assert await behind == [2]
        assert await read(keys, 1) == [("a", 3)]  # and not the result of what was cancelled
        assert await keys.request("a", 4) == [4]


async def test_a_storm_of_cancellations_loses_and_doubles_nothing(mode):
    """What was not cancelled is answered, by its own event."""
    async with counts.options(mode=mode).keys(max_pending=8) as keys:
        tasks = [asyncio.create_task(keys.request(n % 7, n)) for n in range(400)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                task.cancel()
            if number % 11 == 0:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        seen = set()
        for number, answer in enumerate(answers):
            if isinstance(answer, list):
                [(event, count)] = answer
                assert event == number
                assert (number % 7, count) not in seen
                seen.add((number % 7, count))
            else:
                assert isinstance(answer, asyncio.CancelledError)
                assert number % 3 == 0
        assert await keys.request("other", 1) == [(1, 1)]


# Ends.


async def test_end_of_a_key(mode):
    async with counts.options(mode=mode).keys() as keys:
        await keys.end("nothing of it was ever sent")
        await keys.send("a", 1)
        await keys.end("a")
        await keys.end("a")
        await keys.send("a", 2)  # at once: it begins anew behind the end
        assert await keys.request("a", 3) == [(3, 2)]
        assert await read(keys, 3) == [("a", (1, 1)), ("a", ("end", 1)), ("a", (2, 1))]
        assert keys.metrics.opened == 2


async def test_end_of_a_key_with_events_that_wait(mode, tmp_path):
    """Events that come behind the end of a slow key wait, and hold up no other."""
    gate = str(tmp_path / "gate")
    async with gated.options(mode=mode, buffer=1).keys() as keys:
        asked = [asyncio.create_task(keys.request("a", event)) for event in [gate, 1, 2]]
        await until(lambda: keys.metrics.events == 3)
        await keys.end("a")
        asked += [asyncio.create_task(keys.request("a", event)) for event in [3, 4]]
        await keys.send("a", 5)
        assert await keys.request("b", 1) == [1]
        functions.mark(gate)
        assert await asyncio.gather(*asked) == [[gate], [1], [2], [3], [4]]
        assert await read(keys, 1) == [("a", 5)]
        assert keys.metrics.opened == 3


async def test_events_for_a_key_that_ends_keep_their_order(mode, tmp_path):
    """Those from before and after its last events were sent, behind which it ends."""
    gates = [str(tmp_path / name) for name in ("first", "second")]
    async with gated.options(mode=mode, buffer=1).keys() as keys:
        for gate in gates:
            await keys.send("a", gate)
        await keys.end("a")
        await keys.send("a", 1)
        functions.mark(gates[0])
        assert await read(keys, 1) == [("a", gates[0])]
        await keys.send("a", 2)
        functions.mark(gates[1])
        assert await read(keys, 3) == [("a", gates[1]), ("a", 1), ("a", 2)]


async def test_each_end_of_a_key_has_its_place(mode, tmp_path):
    """Also while the key ends, and where all keys are ended before it begins anew."""
    gate = str(tmp_path / "gate")
    async with gated_runs.options(mode=mode, buffer=1).keys() as keys:
        for event in (gate, 1, "end", 2, "end", "end", 3, 4):
            await (keys.end("a") if event == "end" else keys.send("a", event))
        await keys.end_all()
        functions.mark(gate)
        results = [result async for _, result in keys]
        assert results == [gate, 1, "end", 2, "end", 3, 4, "end"]
        assert keys.metrics.opened == 3


async def test_a_key_that_fails_before_its_end_ends_all_the_same(mode, tmp_path):
    gate = str(tmp_path / "gate")
    async with gated_runs.options(mode=mode, buffer=1).keys(on_error="drop") as keys:
        for event in (gate, OwnError("at an event"), 1):
            await keys.send("a", event)
        await keys.end("a")
        await keys.send("a", 2)
        await keys.end_all()
        functions.mark(gate)
        assert [result async for _, result in keys] == [gate, 1, "end", 2, "end"]


async def test_end_of_all(mode):
    async with counts.options(mode=mode).keys() as keys:
        for key in range(1000):
            await keys.send(key, "x")
        await keys.end_all()
        found = await collect(keys)
        assert found == {key: [("x", 1), ("end", 1)] for key in range(1000)}
        assert [item async for item in keys] == []
        for attempt in (keys.send, keys.request):
            with pytest.raises(StreamClosed, match="end_all"):
                await attempt("a", 1)
        assert keys.metrics.open == keys.metrics.queued == keys.metrics.unread == 0


async def test_leaving_finishes_the_events(mode, tmp_path):
    """Also those of requests; and the iteration of another task gets its results."""
    seen = tmp_path / "seen"
    received = []

    @stream_fn(mode=mode)
    async def marks(events):
        async for event in events:
            await asyncio.sleep(0.01)
            functions.mark(str(seen), f"{event} ")
            yield event

    async def receive(keys):
        async for item in keys:
            received.append(item)

    async with marks.keys() as keys:
        reading = asyncio.create_task(receive(keys))
        for key in range(10):
            await keys.send(key, key)
        asked = asyncio.create_task(keys.request("a", "asked"))
        # The task may let other tasks run before it sends.
        await until(lambda: keys.metrics.events == 11)
    assert await asked == ["asked"]
    await reading
    assert sorted(received) == [(key, key) for key in range(10)]
    assert sorted(seen.read_text().split()) == [*map(str, range(10)), "asked"]
    with pytest.raises(StreamClosed, match="are closed"):
        await keys.send("a", 1)


async def test_leaving_drops_results_that_no_task_receives(mode):
    """They do not keep the functions from handling the events that were sent."""
    async with repeats.options(mode=mode).keys(max_pending=10) as keys:
        await keys.send("a", 5000)
    assert keys.metrics.ended == 1
    assert keys.metrics.results == 5001


async def test_leaving_by_an_exception_cancels(mode, tmp_path):
    marker, begun = tmp_path / "finally", str(tmp_path / "begun")

    @stream_fn(mode=mode)
    async def waits(events):
        try:
            async for event in events:
                functions.mark(begun)
                await asyncio.sleep(HANG)
                yield event
        finally:
            functions.mark(str(marker))

    with pytest.raises(OwnError):
        async with waits.keys() as keys:
            asked = asyncio.create_task(keys.request("a", 1))
            await until(lambda: os.path.exists(begun))
            raise OwnError("leave")
    with pytest.raises(StreamClosed):
        await asked
    assert marker.exists()


async def test_functions_that_do_not_end_are_cancelled_after_close_timeout(mode, tmp_path):
    marker, begun = tmp_path / "finally", str(tmp_path / "begun")

    @stream_fn(mode=mode, close_timeout=0.1)
    async def waits(events):
        try:
            async for event in events:
                functions.mark(begun)
                await asyncio.Event().wait()
                yield event
        finally:
            functions.mark(str(marker))

    async with asyncio.timeout(HANG):
        async with waits.keys() as keys:
            await keys.send("a", 1)
            await until(lambda: os.path.exists(begun))
    # A worker that gets no core is left behind, and runs the block once it does.
    await until(marker.exists)


async def test_never_closed_warns(mode):
    keys = counts.options(mode=mode).keys()
    await keys.__aenter__()
    assert await keys.request("a", 1) == [(1, 1)]
    with pytest.warns(ResourceWarning, match=r"keys of `counts` were never closed"):
        del keys
    await asyncio.sleep(0.05)


# Misuse.


async def test_settings_that_are_not_taken(mode):
    with pytest.raises(ValueError, match="drop_oldest"):
        counts.options(mode=mode, full="drop_oldest").keys()
    with pytest.raises(ValueError, match="max_pending"):
        counts.options(mode=mode).keys(max_pending=0)
    with pytest.raises(ValueError, match="on_error"):
        counts.options(mode=mode).keys(on_error="explode")
    with pytest.raises(ValueError, match="finished_keys"):
        counts.options(mode=mode).keys(finished_keys="explode")


async def test_keys_that_are_not_open(mode):
    keys = counts.options(mode=mode).keys()
    with pytest.raises(VeloError, match="async with fn.keys"):
        keys.send("a", 1)
    async with keys:
        assert await keys.request("a", 1) == [(1, 1)]
    with pytest.raises(VeloError, match="entered already"):
        await keys.__aenter__()


async def test_two_readers(mode):
    async with counts.options(mode=mode).keys() as keys:
        reading = asyncio.create_task(read(keys, 1))
        assert await blocked(reading, turns=2)
        error, reading = await one_is_refused(reading, read(keys, 1))
        assert type(error) is StreamBusy
        assert "two tasks" in str(error)
        await keys.send("a", 1)
        assert await reading == [("a", (1, 1))]


async def test_a_reader_that_is_cancelled_loses_nothing(mode):
    async with counts.options(mode=mode).keys() as keys:
        reading = asyncio.create_task(read(keys, 1))
        assert await blocked(reading, turns=2)
        await cancel(reading)
        await keys.send("a", 1)
        assert await read(keys, 1) == [("a", (1, 1))]


async def test_use_from_another_thread_or_loop(mode):
    async with counts.options(mode=mode).keys() as keys:

        async def use():
            with pytest.raises(StreamBusy, match=r"another (thread|event loop)"):
                await keys.send("a", 1)
            with pytest.raises(StreamBusy, match=r"another (thread|event loop)"):
                await keys.request("a", 1)
            with pytest.raises(StreamBusy, match=r"another (thread|event loop)"):
                await read(keys, 1)

        await asyncio.to_thread(lambda: asyncio.run(use()))
        assert await keys.request("a", 1) == [(1, 1)]


async def test_an_operation_that_is_never_awaited_warns(mode):
    async with counts.options(mode=mode).keys() as keys:
        with pytest.warns(RuntimeWarning, match=r"`keys.send\(key, event\)` was never awaited"):
            keys.send("a", 1)
        with pytest.warns(RuntimeWarning, match=r"`keys.request\(key, event\)` was never awaited"):
            keys.request("a", 1)
        assert await keys.request("a", 1) == [(1, 1)]


async def test_a_plain_for_is_refused(mode):
    async with counts.options(mode=mode).keys() as keys:
        with pytest.raises(TypeError, match="async for"):
            iter(aiter(keys))


async def test_functions_that_use_the_keys_that_run_them():
    """Inline, a function may send to other keys, from within the step that handles its event."""

    @stream_fn
    async def forwards(events):
        async for event in events:
            if event > 0:
                await keys.send(event - 1, event - 1)
            yield event

    async with forwards.keys() as keys:
        assert await keys.request(5, 5) == [5]
        assert sorted(await read(keys, 5)) == [(key, key) for key in range(5)]


async def test_nothing_grows_with_keys_that_are_gone(mode):
    async with functions.echo.options(mode=mode).keys() as keys:
        for batch in range(20):
            names = [f"{batch}-{number}" for number in range(100)]
            await asyncio.gather(*(keys.request(name, 1) for name in names))
            for name in names:
                await keys.end(name)
        await until(lambda: keys.metrics.open == 0)
        assert keys.metrics.opened == keys.metrics.ended == 2000
