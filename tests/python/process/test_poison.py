"""Events that end every worker: given up, left out, or handed over."""

import asyncio
import os
import signal

import pytest

import functions
from helpers import HANG, drain
from recovering import fresh_pool, gate  # noqa: F401
from velo import stream_fn
from velo.errors import PoisonEvent, WorkerDied

# What functions look at reaches the workers of the process's own supervisor.
pytestmark = pytest.mark.embedded
REPLAY = {"mode": "process", "recover": "replay", "workers": 1}


def note_death():
    """Counts deaths in a file: how many there were before this one."""
    with open(os.environ["VELO_TEST_GATE"], "a") as file:
        file.write("x")
        return file.tell() - 1


def deaths():
    return os.path.getsize(os.environ["VELO_TEST_GATE"])


@stream_fn(**REPLAY)
async def falls(events):
    """Ends its worker at `("die", n)`, the first `n` times."""
    async for event in events:
        if isinstance(event, tuple) and note_death() < event[1]:
            os._exit(3)
        yield event


@pytest.mark.parametrize("restarts", [0, 1, 3])
async def test_exactly_so_many_restarts_survive(restarts):
    fn = falls.options(max_restarts=restarts)
    event = ("die", restarts)
    assert await fn.run([1, event, 2]) == [1, event, 2]
    assert deaths() == restarts + 1  # the last time it lived


@pytest.mark.parametrize("restarts", [0, 1, 3])
async def test_one_more_gives_up(restarts):
    fn = falls.options(max_restarts=restarts)
    event = ("die", restarts + 1)
    async with fn.open() as stream:
        await stream.send_batch([1, event, 2])
        assert await stream.recv() == 1
        with pytest.raises(PoisonEvent, match="event 2") as info:
            await asyncio.wait_for(stream.recv(), HANG)
    assert deaths() == restarts + 1
    error = info.value
    assert (error.stream, error.number, error.poison) == (stream.name, 2, event)
    assert (error.restarts, error.exit_code) == (restarts, 3)
    assert isinstance(error, WorkerDied)
    assert type(error.__cause__) is WorkerDied
    assert error.__cause__.event == 2


async def test_results_before_it_come_first():
    got = []
    with pytest.raises(PoisonEvent):
        async with falls.open() as stream:
            await stream.send_batch([1, 2, 3, ("die", 99), 4])
            async for result in stream:
                got.append(result)
    assert got == [1, 2, 3]


async def test_skip():
    fn = falls.options(on_poison="skip", max_restarts=1)
    async with fn.open() as stream:
        await stream.send_batch([1, ("die", 99), 2, ("die", 99)])
        await stream.end()
        assert await asyncio.wait_for(drain(stream), HANG) == [1, 2]
    assert deaths() == 4
    assert stream.metrics.dropped == 2
    assert stream.metrics.queued == 0


async def test_skip_with_feed_and_more_deaths():
    fn = falls.options(on_poison="skip", max_restarts=0)
    source = [("die", 99) if n % 10 == 3 else n for n in range(40)]
    async with fn.open() as stream:
        got = [result async for result in stream.feed(source)]
        await stream.send(100)
        got.append(await stream.recv())
    assert got == [n for n in range(40) if n % 10 != 3] + [100]


async def test_a_callable_gets_it():
    letters = []

    def dead_letter(stream, event):
        letters.append((stream, event))

    fn = falls.options(on_poison=dead_letter, max_restarts=1)
    async with fn.open() as stream:
        await stream.send_batch([1, ("die", 99), 2])
        await stream.end()
        assert await drain(stream) == [1, 2]
    assert letters == [(stream.name, ("die", 99))]


async def test_a_callable_that_fails_does_not_hold_up_the_stream():
    said = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    fn = falls.options(on_poison=lambda stream, event: 1 / 0, max_restarts=0)
    assert await fn.run([1, ("die", 99), 2]) == [1, 2]
    assert len(said) == 1
    assert isinstance(said[0]["exception"], ZeroDivisionError)
    assert "on_poison" in said[0]["message"]


async def test_neighbours_do_not_pay():
    """They live on the same worker, with events in flight, and have no restart of their own."""
    neighbour = falls.options(max_restarts=0)
    slow = waits.options(max_restarts=0)
    async with neighbour.open() as other, slow.open() as third, falls.open() as stream:
        await other.send(1)
        assert await other.recv() == 1
        await third.send("wait")
        assert await third.recv() == "begun"
        await stream.send(("die", 3))
        assert await asyncio.wait_for(stream.recv(), HANG) == ("die", 3)
        await other.send(2)
        assert await other.recv() == 2
        third._cancel()
    assert deaths() == 4


@stream_fn(**REPLAY)
async def waits(events):
    async for _ in events:
        yield "begun"
        await asyncio.sleep(3600)


async def test_another_event_has_a_budget_of_its_own():
    fn = counted.options(max_restarts=1)
    assert await fn.run(range(6)) == list(range(6))
    assert deaths() == 6


@stream_fn(**REPLAY)
async def counted(events):
    """Ends its worker once at each event."""
    async for event in events:
        if deaths_so_far() <= event:
            note_death()
            os.kill(os.getpid(), signal.SIGKILL)
        yield event


def deaths_so_far():
    try:
        return deaths()
    except FileNotFoundError:
        return 0


async def test_a_function_that_falls_before_its_first_event():
    @stream_fn(**REPLAY)
    async def never_begins(events):
        note_death()
        os._exit(5)
        yield

    async with never_begins.options(max_restarts=2).open() as stream:
        await stream.send(1)
        with pytest.raises(WorkerDied, match="code 5") as info:
            await asyncio.wait_for(stream.recv(), HANG)
    assert not isinstance(info.value, PoisonEvent)
    assert any("given up after 2 restarts" in note for note in info.value.__notes__)
    assert deaths() == 3


async def test_a_thread_that_falls_is_the_event_at_work():
    @stream_fn(**REPLAY)
    async def threads(events):
        async for event in events:
            if event == 2:
                await asyncio.to_thread(os._exit, 4)
            yield event

    got = []
    with pytest.raises(PoisonEvent) as info:
        async for result in threads.options(max_restarts=1).keyed([1, 2, 3], key=lambda _: 0):
            got.append(result)
    assert info.value.number == 2


async def test_events_are_numbered_over_all_workers():
    """After snapshots and deaths, too."""

    @stream_fn(**REPLAY)
    async def states(events, state):
        async for event in events:
            if event == "die":
                os._exit(1)
            state["n"] = state.get("n", 0) + 1
            yield state["n"]

    async with states.options(max_restarts=1).open() as stream:
        for number in range(200):
            await stream.send(b"x" * 1000)
            assert await stream.recv() == number + 1
        await stream.send("die")
        with pytest.raises(PoisonEvent) as info:
            await asyncio.wait_for(stream.recv(), HANG)
    assert (info.value.number, info.value.poison) == (201, "die")
    assert info.value.event == 201


async def test_the_pool_is_as_good_as_before():
    with pytest.raises(PoisonEvent):
        await falls.options(max_restarts=0).run([("die", 1)])
    assert await functions.echo.options(mode="process").run([1, 2]) == [1, 2]
