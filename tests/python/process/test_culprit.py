"""Who did it: a dead worker's streams know whose function ran, at which event, and where."""

import asyncio
import ctypes
import os
import signal
import threading
import time

import psutil
import pytest

import functions
from helpers import HANG, culprit_of, run_script, until
from recovering import fresh_pool  # noqa: F401
from velo import stream_fn
from velo._process import clients
from velo.errors import WorkerDied

neighbour = functions.echo.options(mode="process", workers=1)


def no_core():
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


ENDS = {
    "segfault": lambda: ctypes.string_at(8),
    "abort": os.abort,
    "exit": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


@stream_fn(mode="process", workers=1)
async def ends_at_three(events):
    """The first event says how, the third is the last."""
    no_core()
    how = ENDS[await anext(events)]
    yield "ready"
    async for event in events:
        if event == 3:
            how()
        yield event


async def receive(stream, count):
    return [await stream.recv() for _ in range(count)]


async def died_with(stream):
    with pytest.raises(WorkerDied) as info:
        await asyncio.wait_for(stream.recv(), HANG)
    return info.value


@pytest.mark.parametrize("how", ENDS)
async def test_culprit_and_neighbour_are_told_apart(how):
    async with neighbour.open() as beside, ends_at_three.open() as culprit:
        await beside.send(0)
        assert await beside.recv() == 0
        await culprit.send_batch([how, 2, 3, 4, 5])
        assert await receive(culprit, 2) == ["ready", 2]
        mine, other = await died_with(culprit), await died_with(beside)
    assert (mine.culprit, mine.culprit_stream, mine.event) == (True, culprit.name, 3)
    assert (other.culprit, other.culprit_stream, other.event) == (False, culprit.name, 3)
    assert mine.in_flight == 3
    assert "this stream's function, at event 3" in str(mine)
    assert f"the function of stream `{culprit.name}`, at event 3" in str(other)
    assert mine.why is None
    assert mine.stack == other.stack
    if how in ("segfault", "abort"):
        assert "in ends_at_three" in mine.stack
        assert mine.stack in "".join(mine.__notes__)
        assert "(most recent call first)" in mine.stack
    else:
        assert mine.stack == ""
    assert not hasattr(other, "__notes__")


async def test_the_stack_is_short_in_the_message_and_whole_in_the_error():
    async with ends_at_three.open() as stream:
        await stream.send_batch(["segfault", 2, 3])
        assert await receive(stream, 2) == ["ready", 2]
        error = await died_with(stream)
    assert len(str(error).splitlines()) == 2
    assert "in `string_at` (" in str(error)
    assert len(error.stack.splitlines()) > 5


async def test_nobody_is_blamed_for_a_kill_from_outside_while_nothing_ran():
    pids = functions.pids.options(mode="process", workers=1)
    async with pids.open() as stream, neighbour.open() as beside:
        await stream.send(0)
        pid = await stream.recv()
        await beside.send(1)
        assert await beside.recv() == 1
        link = next(iter(clients.client_of(asyncio.get_running_loop()).links.values()))
        # A step ends after its result is out, and that the result was taken may begin another one.
        async with asyncio.timeout(HANG):
            while True:
                os.kill(pid, signal.SIGSTOP)
                await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
                if link.end.culprit() is None:
                    break
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        for error in (await died_with(stream), await died_with(beside)):
            assert (error.culprit, error.culprit_stream, error.event) == (None, None, None)
            assert error.stack == ""
            assert "none of its stream functions is known to be the cause" in str(error)


async def test_who_runs_is_there_to_be_seen(tmp_path):
    @stream_fn(mode="process")
    async def holds(events):
        """Holds its worker until there is a file of the event's name."""
        async for path in events:
            while not os.path.exists(path):
                time.sleep(0.001)
            yield path

    gate = str(tmp_path / "gate")
    async with holds.open() as stream:
        await stream.send(str(tmp_path))
        await stream.recv()
        link = next(iter(clients.client_of(asyncio.get_running_loop()).links.values()))
        await stream.send(gate)
        await until(lambda: culprit_of(link.end) == (0, stream.name, 2))
        functions.mark(gate)
        await stream.recv()
        await until(lambda: link.end.culprit() is None)


async def test_before_the_first_event():
    @stream_fn(mode="process")
    async def ends_at_once(events):
        os._exit(3)
        yield

    error = await died_with(await ends_at_once.open())
    assert (error.culprit, error.event) == (True, None)
    assert "before its first event" in str(error)


@pytest.mark.embedded
def test_an_import_that_ends_the_worker_is_its_streams(tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "if os.getpid() != int(os.environ['CLIENT']):\n"
        "    os._exit(4)\n"
        "async def echo(events):\n"
        "    async for event in events:\n"
        "        yield event\n"
    )
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, os
        os.environ["CLIENT"] = str(os.getpid())
        import deadly
        from velo import stream_fn
        from velo.errors import WorkerDied
        async def main():
            try:
                await stream_fn(deadly.echo).options(mode="process").run([1])
            except WorkerDied as error:
                print(error.culprit, error.exit_code, error.event)
        asyncio.run(main())
        """,
    )
    assert (code, output) == (0, "True 4 None\n"), errors


async def test_a_thread_that_falls_is_nobodys_step():
    """Whose thread it was cannot be told: the function that happened to run is not blamed."""

    @stream_fn(mode="process", workers=1)
    async def falls_beside(events):
        no_core()
        async for _ in events:
            threading.Thread(target=ctypes.string_at, args=(8,)).start()
            while True:
                sum(range(1000))
            yield

    async with falls_beside.open() as stream:
        await stream.send(1)
        error = await died_with(stream)
    assert error.signal == signal.SIGSEGV
    assert error.culprit is None
    assert "in string_at" in error.stack.split("\n\n")[1]


async def test_a_stream_of_another_loop_is_told_that_it_was_not_its_own():
    """Clients share workers: each knows its own streams by name, and of others that they are."""
    told = {}
    ready, over = threading.Event(), threading.Event()

    def elsewhere():
        async def wait():
            async with neighbour.open() as stream:
                await stream.send(0)
                await stream.recv()
                ready.set()
                told["error"] = await died_with(stream)

        asyncio.run(wait())
        over.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert await asyncio.to_thread(ready.wait, HANG)
    async with ends_at_three.open() as stream:
        await stream.send_batch(["exit", 2, 3])
        assert await receive(stream, 2) == ["ready", 2]
        assert (await died_with(stream)).culprit is True
    assert await asyncio.to_thread(over.wait, HANG)
    await asyncio.to_thread(thread.join)
    error = told["error"]
    assert (error.culprit, error.culprit_stream, error.event) == (False, None, None)
    assert "of another stream" in str(error)


async def test_a_function_may_have_a_fault_handler_of_its_own(tmp_path):
    path = tmp_path / "faults"

    @stream_fn(mode="process")
    async def has_its_own(events):
        import faulthandler

        no_core()
        with open(path, "w") as file:
            faulthandler.enable(file)
            async for _ in events:
                ctypes.string_at(8)
                yield

    async with has_its_own.open() as stream:
        await stream.send(1)
        error = await died_with(stream)
    assert (error.signal, error.culprit, error.event) == (signal.SIGSEGV, True, 1)
    assert error.stack == ""
    assert "in has_its_own" in path.read_text()


async def test_what_a_forked_child_writes_is_not_the_workers():
    @stream_fn(mode="process")
    async def forks(events):
        no_core()
        async for _ in events:
            child = os.fork()
            if child == 0:
                ctypes.string_at(8)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV
            os._exit(5)
            yield

    async with forks.open() as stream:
        await stream.send(1)
        error = await died_with(stream)
    assert (error.exit_code, error.culprit, error.stack) == (5, True, "")
