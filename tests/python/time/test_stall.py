"""Functions that hold their worker: named with their stack, and killed with it."""

import asyncio
import contextlib
import ctypes
import os
import signal
import time

import pytest

import functions
from helpers import HANG, alive, cancel, until
from recovering import fresh_pool  # noqa: F401
from velo import stream_fn
from velo._process import clients
from velo.errors import StallWarning, WorkerDied

pytestmark = pytest.mark.slow

LIMIT = 0.5

neighbour = functions.echo.options(mode="process", workers=1)


def loop_for_ever():
    while True:
        pass


HOLDS = {
    "a loop": loop_for_ever,
    "a blocking call": lambda: time.sleep(1000),
    "native code": lambda: ctypes.CDLL(None).pause(),
    "native code with the GIL": lambda: ctypes.PyDLL(None).pause(),
}
STOPS = {"stops": lambda: os.kill(os.getpid(), signal.SIGSTOP)}


@stream_fn(mode="process", workers=1, stall_timeout=LIMIT)
async def holds(events):
    async for event in events:
        if step := (HOLDS | STOPS).get(event):
            step()
        yield event


@stream_fn(mode="process", workers=1, stall_timeout=LIMIT)
async def awaits(events):
    async for event in events:
        await asyncio.sleep(event)
        yield os.getpid()


@stream_fn(mode="process", workers=1, stall_timeout=LIMIT)
async def short_steps(events):
    """Takes short steps until there is a file of the event's name."""
    async for path in events:
        while not os.path.exists(path):
            time.sleep(0.001)
            await asyncio.sleep(0)
        yield path


@stream_fn(mode="process", workers=1)
async def one_long_step(events):
    """Holds its worker until there is a file of the event's name."""
    async for path in events:
        while not os.path.exists(path):
            time.sleep(0.001)
        yield path


async def died_with(stream):
    with pytest.raises(WorkerDied) as info:
        await asyncio.wait_for(stream.recv(), HANG)
    return info.value


@contextlib.contextmanager
def named_once():
    with pytest.warns(StallWarning) as caught:
        yield caught
    assert len([w for w in caught if w.category is StallWarning]) == 1


async def another_stalls():
    """Waits until the supervisor has found another worker stalled, and no other.

    So it has looked at all workers for longer than the limit.
    """
    with named_once() as caught:
        async with holds.options(workers=2).open() as stream:
            await stream.send("a loop")
            await died_with(stream)
    assert f"`{stream.name}`" in str(caught[0].message)


@pytest.mark.parametrize("what", HOLDS)
async def test_it_is_named_with_its_stack_and_killed(what):
    async with neighbour.open() as beside, holds.open() as stream:
        await beside.send(1)
        assert await beside.recv() == 1
        await stream.send("first")
        assert await stream.recv() == "first"
        began = time.monotonic()
        with named_once() as caught:
            await stream.send(what)
            mine, other = await died_with(stream), await died_with(beside)
    assert time.monotonic() - began >= LIMIT
    assert (mine.signal, mine.culprit, mine.event) == (signal.SIGKILL, True, 2)
    assert (other.culprit, other.culprit_stream) == (False, stream.name)
    assert f"`stall_timeout` allows, {LIMIT} s" in mine.why
    assert mine.why in str(mine)
    assert mine.why == other.why
    assert "in holds" in mine.stack
    told = str(caught[0].message)
    assert f"`{stream.name}`, at event 2" in told
    assert "in holds" in told
    assert len(str(mine).splitlines()) == 3


@pytest.mark.filterwarnings("error::velo.errors.StallWarning")
async def test_streams_fail_where_the_warning_is_an_error():
    reported = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reported.append(type(context["exception"]))
    )
    async with neighbour.open() as beside, holds.open() as stream:
        await stream.send("a loop")
        mine, other = await died_with(stream), await died_with(beside)
    assert (mine.culprit, other.culprit) == (True, False)
    assert reported == [StallWarning]


async def test_the_pool_goes_on():
    with named_once(), pytest.raises(WorkerDied):
        await holds.run(["a loop"])
    assert await holds.run(["x"]) == ["x"]


async def test_waiting_is_no_stall(tmp_path):
    path = str(tmp_path / "gate")
    gate = functions.gate.options(mode="process", workers=1, stall_timeout=LIMIT)
    async with gate.open() as stream:
        await stream.send(path)
        await stream.send("event")
        await another_stalls()
        functions.mark(path)
        assert await asyncio.wait_for(stream.recv(), HANG) == "event"


async def test_many_short_steps_are_no_stall(tmp_path):
    path = str(tmp_path / "gate")
    async with short_steps.open() as stream:
        await stream.send(path)
        await another_stalls()
        functions.mark(path)
        assert await asyncio.wait_for(stream.recv(), HANG) == path


async def test_a_neighbour_without_a_limit_may_take_its_time(tmp_path):
    """A stream without a limit may hold its worker, also while events of others wait."""
    path = str(tmp_path / "gate")
    async with awaits.open() as limited, one_long_step.open() as stream:
        await limited.send(0)
        pid = await limited.recv()
        await stream.send(path)
        await limited.send(0)
        await another_stalls()
        functions.mark(path)
        assert await asyncio.wait_for(stream.recv(), HANG) == path
        assert await limited.recv() == pid


async def test_a_stopped_worker_is_one_that_stalls():
    async with awaits.open() as stream:
        await stream.send(0)
        pid = await stream.recv()
        await until(lambda: not link_of(stream).culprit())
        os.kill(pid, signal.SIGSTOP)
        with named_once():
            await stream.send(0)
            error = await died_with(stream)
    assert (error.culprit, error.pid) == (None, pid)
    assert "none of its functions ran" in error.why
    await until(lambda: not alive(pid))


async def test_a_worker_that_is_stopped_while_it_works():
    async with holds.open() as stream:
        with named_once():
            await stream.send("stops")
            error = await died_with(stream)
    assert (error.culprit, error.event, error.stack) == (True, 1, "")


async def test_a_stopped_worker_for_which_nothing_waits_is_let_be():
    async with awaits.open() as stream:
        await stream.send(0)
        pid = await stream.recv()
        await until(lambda: not link_of(stream).culprit())
        os.kill(pid, signal.SIGSTOP)
        await another_stalls()
        os.kill(pid, signal.SIGCONT)
        await stream.send(0)
        assert await stream.recv() == pid


async def test_what_is_not_a_function_but_holds_the_loop():
    """A task of its own that a function has started: no stream's step, so no stream is blamed."""

    @stream_fn(mode="process", workers=1, stall_timeout=LIMIT)
    async def starts_a_task(events):
        async def block():
            await asyncio.sleep(0.05)
            time.sleep(1000)

        async for event in events:
            task = asyncio.create_task(block())
            yield event
            del task

    async with starts_a_task.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        with named_once() as caught:

            async def send_on():
                while True:  # the first may come before the task blocks
                    await stream.send(1)
                    await asyncio.sleep(0.02)

            sending = asyncio.create_task(send_on())
            with pytest.raises(WorkerDied) as info:
                async with asyncio.timeout(HANG):
                    while True:
                        await stream.recv()
            await cancel(sending)
    error = info.value
    assert (error.culprit, error.culprit_stream) == (None, None)
    assert "none of its functions ran" in error.why
    assert "in block" in error.stack
    assert "in block" in str(caught[0].message)


async def test_many_events_are_no_stall():
    """One short step for each event, without a wait between them."""
    nap = functions.nap.options(mode="process", workers=1, stall_timeout=LIMIT)
    stalling = asyncio.create_task(another_stalls())

    async def source():
        while not stalling.done():
            yield 0.001
            await asyncio.sleep(0)

    async with nap.open() as stream:
        async for seconds in stream.feed(source()):
            assert seconds == 0.001
    await stalling


def link_of(stream):
    links = clients.client_of(asyncio.get_running_loop()).links.values()
    return next(link.end for link in links if link.end.streams)
