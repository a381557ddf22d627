"""Death: of workers, of clients; nothing else suffers and nothing is left."""

import asyncio
import contextlib
import json
import os
import signal
import time

import pytest

import functions
from helpers import alive, drain, family, run_script, start_script, until, until_sync, write_script
from velo import _client, stream_fn
from velo.errors import StreamClosed, WorkerDied

echo = functions.echo.options(mode="process")
pids = functions.pids.options(mode="process", workers=2)


@pytest.fixture(autouse=True)
def fresh_pool():
    """Each test has a supervisor of its own: deaths in a row slow down the next start."""
    _client._shutdown()
    yield
    _client._shutdown()


async def pid_of(stream):
    await stream.send(0)
    return await stream.recv()


async def two_workers(stack):
    """Streams on two different workers."""
    first = await stack.enter_async_context(pids.open())
    pid = await pid_of(first)
    while True:
        other = await stack.enter_async_context(pids.open())
        if await pid_of(other) != pid:
            return first, other


async def test_kill_takes_only_its_streams():
    import contextlib

    async with contextlib.AsyncExitStack() as stack:
        victim, other = await two_workers(stack)
        pid, other_pid = await pid_of(victim), await pid_of(other)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(victim.recv(), 5)
        assert time.monotonic() - began < 1
        error = info.value
        assert (error.pid, error.signal, error.exit_code) == (pid, signal.SIGKILL, None)
        assert error.in_flight <= 1  # the function may not have asked for the next event yet
        assert error.stream == victim.name
        assert "SIGKILL" in str(error)
        assert str(pid) in str(error)
        for _ in range(10):
            assert await pid_of(other) == other_pid
        with pytest.raises(StreamClosed):
            await victim.recv()
        with pytest.raises(StreamClosed):
            await victim.send(1)


async def test_send_to_a_dead_worker_says_so():
    """Not only once the queue is full: nobody will ever read it."""
    async with functions.never_reads.options(mode="process", buffer=100_000).open() as stream:
        assert await stream.recv() == "ready"
        os.kill(await pid_of_stream(stream), signal.SIGKILL)

        async def send_on():
            while True:
                await stream.send(1)
                await asyncio.sleep(0.001)

        with pytest.raises((WorkerDied, StreamClosed)):
            await asyncio.wait_for(send_on(), 5)
        with pytest.raises((WorkerDied, StreamClosed)):
            await stream.recv()


async def pid_of_stream(stream):
    """The worker of a stream whose function says nothing."""
    from velo._client import client_of

    links = client_of(asyncio.get_running_loop())._links.values()
    return next(link.pid for link in links if link.end.streams)


async def test_events_in_flight_are_counted():
    async with functions.never_reads.options(mode="process", buffer=64).open() as stream:
        assert await stream.recv() == "ready"
        await stream.send_batch(range(17))
        os.kill(await pid_of_stream(stream), signal.SIGKILL)
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(stream.recv(), 5)
        assert info.value.in_flight == 17
        assert "17 events in flight" in str(info.value)


async def test_results_before_the_death_come_first():
    @stream_fn(mode="process")
    async def dies(events):
        async for event in events:
            if event == 5:
                await asyncio.sleep(0.1)
                os.kill(os.getpid(), signal.SIGKILL)
            yield event

    async with dies.open() as stream:
        await stream.send_batch(range(10))
        got = []
        with pytest.raises(WorkerDied) as info:
            async for result in stream:
                got.append(result)
        assert got == [0, 1, 2, 3, 4]
        assert info.value.in_flight == 5


@pytest.mark.parametrize("how", ["recv", "send", "feed", "feed async", "keyed", "aclose", "batch"])
async def test_death_reaches_every_wait(how):
    @stream_fn(mode="process", buffer=2)
    async def dies(events):
        yield os.getpid()
        async for event in events:
            if event == 3:
                await asyncio.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)

    async def numbers():
        for number in range(100):
            yield number

    async def use():
        if how == "keyed":
            async for _ in dies.keyed(numbers(), key=lambda event: 0):
                pass
            return
        stream = await dies.open()
        try:
            if how == "recv":
                await stream.send_batch(range(3))
                await stream.send(3)
                await drain(stream)
            elif how == "send":
                while True:
                    await stream.send(3)
            elif how == "batch":
                await stream.send_batch(range(100))
            elif how == "feed":
                async for _ in stream.feed(range(100)):
                    pass
            elif how == "feed async":
                async for _ in stream.feed(numbers()):
                    pass
            else:
                await stream.send_batch(range(3))
                await stream.send(3)
        finally:
            await stream.aclose()

    # Whoever waits for the end learns it, if not at the send itself then at the close.
    with pytest.raises((WorkerDied, StreamClosed)) as info:
        await asyncio.wait_for(use(), 10)
    if how not in ("send", "batch"):
        assert type(info.value) is WorkerDied


async def test_the_pool_replaces_a_dead_worker():
    one = functions.pids.options(mode="process", workers=1)
    seen = set()
    for _ in range(4):
        async with asyncio.timeout(10):
            stream = await one.open()
            pid = await pid_of(stream)
            assert pid not in seen
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                await stream.recv()
            await stream.aclose()
    assert await echo.run([1, 2]) == [1, 2]


async def test_os_exit():
    @stream_fn(mode="process")
    async def leaves(events):
        async for event in events:
            os._exit(event)
            yield

    async with leaves.open() as stream:
        await stream.send(7)
        with pytest.raises(WorkerDied, match="exited with code 7") as info:
            await asyncio.wait_for(stream.recv(), 5)
        assert (info.value.signal, info.value.exit_code, info.value.in_flight) == (None, 7, 1)


async def test_os_exit_zero_is_a_death_too():
    @stream_fn(mode="process")
    async def leaves(events):
        async for _ in events:
            os._exit(0)
            yield

    with pytest.raises(WorkerDied, match="code 0"):
        await asyncio.wait_for(leaves.run([1]), 5)


async def test_segfault():
    @stream_fn(mode="process")
    async def faults(events):
        import ctypes
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        async for _ in events:
            ctypes.string_at(8)
            yield

    with pytest.raises(WorkerDied, match="SIGSEGV") as info:
        await asyncio.wait_for(faults.run([1]), 5)
    assert info.value.signal == signal.SIGSEGV


async def test_abort():
    @stream_fn(mode="process")
    async def aborts(events):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        async for _ in events:
            os.abort()
            yield

    with pytest.raises(WorkerDied, match="SIGABRT"):
        await asyncio.wait_for(aborts.run([1]), 5)


async def test_sigterm_at_a_worker_is_no_hang():
    stream = await functions.pids.options(mode="process").open()
    pid = await pid_of(stream)
    os.kill(pid, signal.SIGTERM)
    with pytest.raises((WorkerDied, StreamClosed)):
        await asyncio.wait_for(stream.recv(), 10)
    await stream.aclose()
    assert await echo.run([1]) == [1]


async def test_killed_zygote_is_replaced():
    """Workers go on, and new ones can still be made."""
    import psutil

    one = functions.pids.options(mode="process", workers=1)
    async with one.open() as stream:
        pid = await pid_of(stream)
        zygote = psutil.Process(pid).ppid()
        assert zygote != os.getpid()
        os.kill(zygote, signal.SIGKILL)
        await until(lambda: not alive(zygote))
        with contextlib.suppress(WorkerDied):  # workers may die with it, if they say so
            assert await asyncio.wait_for(pid_of(stream), 5) == pid
    async with asyncio.timeout(10):
        assert await echo.run([1]) == [1]


async def test_crashing_functions_do_not_close_the_pool():
    """Workers that served and then died are no reason to refuse the next stream."""

    @stream_fn(mode="process", workers=2)
    async def crashes(events):
        async for _ in events:
            os._exit(1)
            yield

    async with asyncio.timeout(15):
        for _ in range(7):
            with pytest.raises(WorkerDied):
                await crashes.run([1])
        assert await echo.run([1]) == [1]


async def test_many_streams_die_together():
    one = functions.pids.options(mode="process", workers=1)
    streams = [await one.open() for _ in range(50)]
    pid = await pid_of(streams[0])
    waits = [asyncio.create_task(stream.recv()) for stream in streams]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 5)
    assert {type(result) for result in results} == {WorkerDied}
    assert {result.stream for result in results} == {stream.name for stream in streams}
    for stream in streams:
        await stream.aclose()


async def test_storm_of_kills(long):
    """Whatever is killed whenever: each stream gives its results or says that its worker died."""
    import random

    random.seed(5)
    finished = died = 0

    async def one(number):
        nonlocal finished, died
        try:
            assert await pids_run(number) == 20
            finished += 1
        except (WorkerDied, StreamClosed):
            died += 1

    async def pids_run(number):
        async with pids.open() as stream:
            count = 0
            for _ in range(20):
                await stream.send(number)
                victims.add(await stream.recv())
                count += 1
                await asyncio.sleep(random.random() * 0.004)
            return count

    victims = set()

    async def killer():
        for _ in range(200 if long else 12):
            await asyncio.sleep(0.05)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victims.pop(), signal.SIGKILL)

    killing = asyncio.create_task(killer())
    number = 0
    while not killing.done():
        await asyncio.wait_for(asyncio.gather(*(one(number + n) for n in range(8))), 20)
        number += 8
    await killing
    assert finished + died == number
    assert died > 0
    assert finished > 0


OPEN_STREAMS = """
    import asyncio, os, sys
    from velo import stream_fn

    @stream_fn(mode="process", workers=2)
    async def pids(events):
        async for _ in events:
            yield os.getpid()

    async def main():
        streams = [await pids.open() for _ in range(4)]
        for stream in streams:
            await stream.send(0)
        found = {await stream.recv() for stream in streams}
        print(*found, flush=True)
        LAST

    asyncio.run(main())
"""


def started(tmp_path, last):
    """A client with open streams, and its workers."""
    script = write_script(tmp_path, OPEN_STREAMS.replace("LAST", last))
    process = start_script(script)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers, process.communicate()
    return process, workers


def test_killed_client_leaves_nothing(tmp_path):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    assert len(everybody) >= 3
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), 1.0, lambda: everybody)


def test_killed_client_with_a_stopped_worker_leaves_nothing(tmp_path):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    os.kill(workers[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), 1.0, lambda: everybody)


def test_killed_client_with_a_busy_worker_leaves_nothing(tmp_path):
    """A worker that never gets to its event loop."""
    script = write_script(
        tmp_path,
        """
        import asyncio, os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def busy(events):
            yield os.getpid()
            async for _ in events:
                while True:
                    pass

        async def main():
            stream = await busy.open()
            print(await stream.recv(), flush=True)
            await stream.send(0)
            await asyncio.sleep(60)

        asyncio.run(main())
        """,
    )
    process = start_script(script)
    worker = int(process.stdout.readline())
    everybody = {*family(process.pid), worker}
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), 1.0, lambda: everybody)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signalled_client_leaves_nothing(tmp_path, name):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    process.send_signal(getattr(signal, name))
    process.wait(5)
    until_sync(lambda: not any(map(alive, everybody)), 1.0, lambda: everybody)


def test_exit_with_open_streams_is_clean_and_quick(tmp_path):
    began = time.monotonic()
    process, workers = started(tmp_path, "globals()['kept'] = streams")
    everybody = {*family(process.pid), *workers}
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "panicked" not in errors
    assert time.monotonic() - began < 3
    until_sync(lambda: not any(map(alive, everybody)), 1.0, lambda: everybody)
    assert not output


def test_exit_inside_the_loop_is_clean(tmp_path):
    process, workers = started(tmp_path, "sys.exit(4)")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 4, errors
    assert "panicked" not in errors
    until_sync(lambda: not any(map(alive, workers)), 1.0, lambda: workers)


def test_exit_with_a_stopped_worker_is_bounded(tmp_path):
    process, workers = started(tmp_path, "input()")
    process.kill()
    process.wait()
    script = OPEN_STREAMS.replace("LAST", "import signal; os.kill(min(found), signal.SIGSTOP)")
    began = time.monotonic()
    code, _, errors = run_script(tmp_path, script, timeout=15)
    assert code == 0, errors
    assert time.monotonic() - began < 10
    until_sync(lambda: not any(map(alive, workers)), 1.0, lambda: workers)


def test_control_c(tmp_path):
    """At a terminal it reaches every process of the group; only the client acts on it."""
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    # The client's own report, of a cancelled task and then the interrupt; none of a worker.
    assert errors.count("Traceback") <= 2, errors
    assert errors.endswith("KeyboardInterrupt\n")
    assert "panicked" not in errors
    assert process.returncode in (-signal.SIGINT, 130)
    until_sync(lambda: not any(map(alive, everybody)), 1.0, lambda: everybody)


def test_control_c_in_run_sync(tmp_path):
    """The function is cancelled, the caller goes on and may use velo again."""
    script = write_script(
        tmp_path,
        """
        import asyncio, os, sys
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def sleeps(events):
            try:
                async for event in events:
                    if event:
                        print("sleeping", flush=True)
                        await asyncio.sleep(60)
                    yield event
            finally:
                print("finally", flush=True)

        try:
            sleeps.run_sync([0, 1])
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(sleeps.run_sync([0, 0]), flush=True)
        """,
    )
    process = start_script(script)
    assert process.stdout.readline() == "sleeping\n"
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert output.split("\n")[:3] == ["finally", "interrupted", "finally"], (output, errors)
    assert "[0, 0]" in output


FORK = """
    import asyncio, os, sys, time
    from velo import stream_fn

    @stream_fn(mode="MODE", workers=1)
    async def pids(events):
        async for event in events:
            yield (event, os.getpid())

    if BEFORE:
        first = pids.run_sync([1])[0][1]
    child = os.fork()
    try:
        results = pids.run_sync([2, 3])
        assert [event for event, _ in results] == [2, 3], results
        if BEFORE and "MODE" == "process":
            assert (results[0][1] == first) is (child != 0), "the child has workers of its own"
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(9)
    if child == 0:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if BEFORE:
        assert pids.run_sync([4])[0][0] == 4
    print("fine")
"""


@pytest.mark.parametrize("before", [True, False])
def test_fork_in_the_client(tmp_path, mode, before):
    script = FORK.replace("MODE", mode).replace("BEFORE", str(before))
    code, output, errors = run_script(tmp_path, script, timeout=20)
    assert (code, output) == (0, "fine\n"), errors


def test_fork_with_open_streams(tmp_path):
    """The child leaves its parent's streams alone, even when it collects them."""
    script = """
        import asyncio, gc, os, warnings
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def add(events):
            total = 0
            async for event in events:
                total += event
                yield total

        async def main():
            stream = await add.open()
            await stream.send(1)
            assert await stream.recv() == 1
            child = os.fork()
            if child == 0:
                warnings.simplefilter("ignore")
                del stream
                gc.collect()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            await stream.send(2)
            assert await stream.recv() == 3
            await stream.aclose()

        asyncio.run(main())
        print("fine")
    """
    code, output, errors = run_script(tmp_path, script, timeout=20)
    assert (code, output) == (0, "fine\n"), errors


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(tmp_path, method):
    script = f"""
        import multiprocessing, os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def double(events):
            async for event in events:
                yield event * 2

        def work(number):
            return double.run_sync([number, number + 1])

        if __name__ == "__main__":
            before = double.run_sync([1])
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                print(pool.map(work, [1, 10, 100], chunksize=1))
            assert double.run_sync([5]) == [10]
    """
    code, output, errors = run_script(tmp_path, script, timeout=30)
    assert (code, output) == (0, "[[2, 4], [20, 22], [200, 202]]\n"), errors


def test_ended_fork_child_leaves_the_parents_workers(tmp_path):
    """The child's exit must not take down what the parent uses."""
    script = """
        import asyncio, json, os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def pids(events):
            async for _ in events:
                yield os.getpid()

        async def main():
            stream = await pids.open()
            await stream.send(0)
            before = await stream.recv()
            child = os.fork()
            if child == 0:
                raise SystemExit(0)
            os.waitpid(child, 0)
            await stream.send(0)
            print(json.dumps([before, await stream.recv()]))
            await stream.aclose()

        asyncio.run(main())
    """
    code, output, errors = run_script(tmp_path, script, timeout=20)
    assert code == 0, errors
    before, after = json.loads(output)
    assert before == after
