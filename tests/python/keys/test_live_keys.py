"""Keys whose events come from tasks: `fn.keys()`."""

import asyncio
import os
import signal
import warnings

import pytest

import functions
from functions import OwnError
from helpers import HANG, blocked, cancel, until
from velo import stream_fn
from velo.errors import (
    BufferFull,
    EventTimeout,
    StreamBusy,
    StreamClosed,
    VeloError,
    WorkerDied,
)


@stream_fn
async def counts(events):
    """Counts its events: one result per event, and one after the loop."""
    count = 0
    async for event in events:
        count += 1
        yield event, count
    yield "end", count


@stream_fn
async def repeats(events):
    """Yields as often as an event says, and a greeting before all events."""
    yield "hello"
    async for event in events:
        for number in range(event):
            yield number


@stream_fn
async def gated(events):
    """Waits at an event that is the name of a file until there is one."""
    async for event in events:
        while isinstance(event, str) and not os.path.exists(event):
            await asyncio.sleep(0.002)
        yield event


@stream_fn
async def fails(events):
    count = 0
    async for event in events:
        count += 1
        if event == "fail":
            raise OwnError("at an event", code=3)
        await asyncio.sleep(0)
        yield event, count


@stream_fn
async def two(events):
    """Returns after two events, whatever comes."""
    count = 0
    async for event in events:
        yield event
        count += 1
        if count == 2:
            return


async def read(keys, count):
    """So many results of the iteration."""
    results = aiter(keys)
    return [await anext(results) for _ in range(count)]


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


# Errors.


async def test_a_request_raises_the_exception_of_its_event(mode):
    async with fails.options(mode=mode).keys() as keys:
        assert await keys.request("a", 1) == [(1, 1)]
        assert await keys.request("b", 1) == [(1, 1)]
        with pytest.raises(OwnError, match="at an event") as caught:
            await keys.request("a", "fail")
        assert "in the stream of key 'a'" in caught.value.__notes__
        assert await keys.request("a", 1) == [(1, 1)]  # anew
        assert await keys.request("b", 1) == [(1, 2)]  # as it was


async def test_events_behind_one_that_fails(mode, tmp_path):
    """Requests that the function has not taken are refused, or begin the key anew."""
    gate = str(tmp_path / "gate")

    @stream_fn(mode=mode, buffer=2)
    async def fails_at_a_gate(events):
        count = 0
        async for event in events:
            count += 1
            while isinstance(event, str) and not os.path.exists(event):
                await asyncio.sleep(0.002)
            if isinstance(event, str):
                raise OwnError("at the gate")
            yield event, count

    async with fails_at_a_gate.keys() as keys:
        asked = [asyncio.create_task(keys.request("a", event)) for event in [gate, 1, 2, 3]]
        assert all([await blocked(task, turns=2) for task in asked])
        functions.mark(gate)
        first, second, *rest = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, OwnError)
        assert isinstance(second, StreamClosed)
        assert "key 'a' has failed before it took this event" in str(second)
        assert isinstance(second.__cause__, OwnError)
        assert rest == [[(2, 1)], [(3, 2)]]


async def test_the_iteration_raises_what_no_request_does(mode):
    with pytest.raises(OwnError) as caught:
        async with fails.options(mode=mode).keys() as keys:
            await keys.send("a", "fail")
            async for _ in keys:
                pass
    assert "in the stream of key 'a'" in caught.value.__notes__


async def test_after_a_failure_everything_says_so(mode, tmp_path):
    gate = str(tmp_path / "gate")
    with pytest.raises(OwnError):
        async with (
            gated.options(mode=mode).keys() as others,
            fails.options(mode=mode).keys() as keys,
        ):
            waiting = asyncio.create_task(others.request("x", gate))
            await keys.send("a", "fail")
            await until(lambda: keys.metrics.ended == 1)
            for attempt in (keys.send, keys.request):
                with pytest.raises(StreamClosed, match=r"keys of `fails` were cancelled") as caught:
                    await attempt("b", 1)
                assert isinstance(caught.value.__cause__, OwnError)
            functions.mark(gate)
            assert await waiting == [gate]  # the keys of another block
        # The block raises what no task was told.


async def test_a_failure_ends_pending_requests(mode, tmp_path):
    gate = str(tmp_path / "gate")

    @stream_fn(mode=mode)
    async def either(events):
        async for event in events:
            if event == "fail":
                raise OwnError("now")
            while not os.path.exists(event):
                await asyncio.sleep(0.002)
            yield event

    with pytest.raises(OwnError):
        async with either.keys() as keys:
            waiting = asyncio.create_task(keys.request("a", gate))
            assert await blocked(waiting, turns=3)
            await keys.send("b", "fail")
            with pytest.raises(StreamClosed, match="were cancelled"):
                await waiting


async def test_drop_and_callable(mode):
    async with fails.options(mode=mode).keys(on_error="drop") as keys:
        await keys.send("a", "fail")
        await keys.send("b", 1)
        assert await read(keys, 1) == [("b", (1, 1))]
        await until(lambda: keys.metrics.ended == 1)
        assert await keys.request("a", 1) == [(1, 1)]
    told = []
    function = fails.options(mode=mode)
    async with function.keys(on_error=lambda key, error: told.append((key, error))) as keys:
        await keys.send("a", "fail")
        await until(lambda: told)
        assert await keys.request("a", 1) == [(1, 1)]
        with pytest.raises(OwnError):
            await keys.request("a", "fail")
    [(key, error)] = told  # and not that of the request
    assert (key, error.code) == ("a", 3)
    assert "in the stream of key 'a'" in error.__notes__


async def test_an_on_error_that_raises_fails_everything(mode):
    def refuses(key, error):
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        async with fails.options(mode=mode).keys(on_error=refuses) as keys:
            await keys.send("a", "fail")
            async for _ in keys:
                pass


async def test_event_timeout(mode):
    async with gated.options(mode=mode, event_timeout=0.05).keys() as keys:
        with pytest.raises(EventTimeout) as caught:
            await keys.request("a", "/no such file")
        assert "in the stream of key 'a'" in caught.value.__notes__


async def test_a_worker_that_dies():
    """Each of its keys says so; the others go on, and its keys begin anew elsewhere."""

    @stream_fn(mode="process", workers=2)
    async def pid_or_wait(events):
        async for event in events:
            if event == "wait":
                await asyncio.sleep(HANG)
            yield os.getpid()

    told = []
    async with pid_or_wait.keys(on_error=lambda key, error: told.append(key)) as keys:
        workers = {key: (await keys.request(key, "pid"))[0] for key in range(20)}
        victim = workers[0]
        waiting = asyncio.create_task(keys.request(0, "wait"))
        assert await blocked(waiting, turns=3)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            await waiting
        assert "in the stream of key 0" in caught.value.__notes__
        mine = {key for key, pid in workers.items() if pid == victim}
        await until(lambda: set(told) == mine - {0} or set(told) == mine)
        after = {key: (await keys.request(key, "pid"))[0] for key in range(20)}
        assert {key for key in after if after[key] == workers[key]} == set(workers) - mine
        assert victim not in after.values()


async def test_a_worker_that_dies_fails_everything_by_default():
    with pytest.raises(WorkerDied):
        async with functions.pids.options(mode="process").keys() as keys:
            [pid] = await keys.request("a", 1)
            os.kill(pid, signal.SIGKILL)
            async for _ in keys:
                pass


async def test_events_that_cannot_be_sent():
    """Process mode: the task that sends them hears of it, and everything else goes on."""
    cannot_travel = (number for number in ())
    async with counts.options(mode="process").keys() as keys:
        for _ in range(2):  # before there is a worker, and after
            asked = [keys.request("a", event) for event in (1, cannot_travel, 2)]
            asked += [keys.request("b", event) for event in (1, cannot_travel, 2)]
            first, second, third, *rest = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(second, TypeError)
            assert isinstance(rest[1], TypeError)
            assert third == [(2, first[0][1] + 1)]
            assert rest[2] == [(2, rest[0][0][1] + 1)]
        with pytest.raises(TypeError):
            await keys.send("a", cannot_travel)
        assert await keys.request("a", 3) == [(3, 5)]
    told = []
    function = counts.options(mode="process")
    async with function.keys(on_error=lambda key, error: told.append((key, error))) as keys:
        await keys.send("a", cannot_travel)  # before there is a worker: it hears of it later
        await keys.send("a", 1)
        assert await read(keys, 1) == [("a", (1, 1))]
    [(key, error)] = told
    assert key == "a"
    assert isinstance(error, TypeError)


async def test_keys_that_are_none(mode):
    async with counts.options(mode=mode).keys() as keys:
        for attempt in (lambda: keys.send([1], 1), lambda: keys.request([1], 1)):
            with pytest.raises(TypeError, match="unhashable") as caught:
                await attempt()
            assert caught.value.__notes__ == ["this was to be a key: [1]"]
        assert await keys.request(1, "a") == [("a", 1)]
        assert await keys.request(1.0, "b") == [("b", 2)]
        assert await keys.request(None, "c") == [("c", 1)]


# Recovery.


@stream_fn(mode="process", recover="replay", workers=2)
async def recovers(events):
    """Counts, and ends its worker at an event that is the name of a file, until there is one."""
    count = 0
    async for event in events:
        count += 1
        if isinstance(event, str) and event.startswith("/"):
            yield "before"
            if not os.path.exists(event):
                functions.mark(event)
                os.kill(os.getpid(), signal.SIGKILL)
        yield event, count


@stream_fn(mode="process", recover="replay", workers=2)
async def saves(events, state):
    """The same by its state, of which snapshots are made."""
    async for event in events:
        state["count"] = state.get("count", 0) + 1
        if isinstance(event, str) and event.startswith("/") and not os.path.exists(event):
            functions.mark(event)
            os.kill(os.getpid(), signal.SIGKILL)
        yield event, state["count"]


@pytest.mark.parametrize("function", [recovers, saves], ids=["replay", "state"])
async def test_requests_survive_the_death_of_their_worker(function, tmp_path):
    """All keys go on where they were, each request with its own results, none twice."""
    async with function.keys() as keys:

        async def user(key):
            answers = []
            for number in range(20):
                lethal = key % 10 == 0 and number == 10
                event = str(tmp_path / f"{key}") if lethal else number
                answers.append((event, await keys.request(key, event)))
            return answers

        for answers in await asyncio.gather(*map(user, range(50))):
            for number, (event, results) in enumerate(answers):
                before = ["before"] if function is recovers and isinstance(event, str) else []
                assert results == [*before, (event, number + 1)]
        assert keys.metrics.results == 50 * 20 + (5 if function is recovers else 0)
        assert keys.metrics.unread == 0
        for key in range(50):
            await keys.send(key, "x")
        assert sorted(await read(keys, 50)) == [(key, ("x", 21)) for key in range(50)]


async def test_a_request_that_ends_worker_after_worker():
    """With `on_poison="skip"` it raises, and its key goes on without the event."""

    @stream_fn(mode="process", recover="replay", max_restarts=1, on_poison="skip")
    async def dies(events):
        count = 0
        async for event in events:
            count += 1
            if event == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            yield event, count

    async with dies.keys(on_error="drop") as keys:
        asked = [keys.request("a", event) for event in (1, "die", 2)]
        asked += [keys.request("b", event) for event in (1, 2)]
        first, second, third, *others = await asyncio.gather(*asked, return_exceptions=True)
        assert first == [(1, 1)]
        assert isinstance(second, WorkerDied)
        assert third == [(2, 2)]
        assert others == [[(1, 1)], [(2, 2)]]


async def test_a_request_that_ends_worker_after_worker_fails_its_key_alone():
    @stream_fn(mode="process", recover="replay", max_restarts=1)
    async def dies(events):
        count = 0
        async for event in events:
            count += 1
            if event == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            yield event, count

    async with dies.keys(on_error="drop") as keys:
        assert await keys.request("b", 1) == [(1, 1)]
        with pytest.raises((WorkerDied, StreamClosed)):
            await keys.request("a", "die")
        assert await keys.request("b", 2) == [(2, 2)]
        assert await keys.request("a", 1) == [(1, 1)]


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
        await blocked(asked[0], turns=2)
        await keys.end("a")
        asked += [asyncio.create_task(keys.request("a", event)) for event in [3, 4]]
        await keys.send("a", 5)
        assert await keys.request("b", 1) == [1]
        functions.mark(gate)
        assert await asyncio.gather(*asked) == [[gate], [1], [2], [3], [4]]
        assert await read(keys, 1) == [("a", 5)]
        assert keys.metrics.opened == 3


async def test_end_of_all(mode):
    async with counts.options(mode=mode).keys() as keys:
        for key in range(1000):
            await keys.send(key, "x")
        await keys.end_all()
        found = {}
        async for key, result in keys:
            found.setdefault(key, []).append(result)
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
        await asyncio.sleep(0)
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
                await asyncio.sleep(HANG)
                yield event
        finally:
            functions.mark(str(marker))

    async with asyncio.timeout(HANG):
        async with waits.keys() as keys:
            await keys.send("a", 1)
            await until(lambda: os.path.exists(begun))
    assert marker.exists()


async def test_never_closed_warns(mode):
    keys = counts.options(mode=mode).keys()
    await keys.__aenter__()
    assert await keys.request("a", 1) == [(1, 1)]
    with pytest.warns(ResourceWarning, match=r"keys of `counts` were never closed"):
        del keys
    await asyncio.sleep(0.05)


# Limits.


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


async def test_restart_loses_no_event_that_was_on_its_way(mode):
    events = [("a", number) for number in range(9)]
    results = two.options(mode=mode).keyed(events, key=0, finished_keys="restart")
    assert [number async for _, (_, number) in results] == [*range(9)]


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
        with pytest.raises(StreamBusy, match="two tasks"):
            await read(keys, 1)
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
