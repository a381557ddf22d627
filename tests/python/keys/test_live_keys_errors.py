"""Errors of live keys: of their functions, their events and their workers; recovery."""

import asyncio
import os
import signal

import pytest

import functions
from functions import OwnError
from helpers import HANG, blocked, until
from live_functions import counts, fails, gated, read
from velo import stream_fn
from velo.errors import (
    EventTimeout,
    StreamClosed,
    WorkerDied,
)


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
    # A worker may wait for a core meanwhile. The supervisor would end it after a shorter limit.
    async with gated.options(mode=mode, event_timeout=1).keys() as keys:
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
