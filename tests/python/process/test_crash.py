"""Workers that die: their streams say so at once, and nothing else suffers."""

import asyncio
import contextlib
import os
import signal

import pytest

import functions
from helpers import HANG, alive, drain, pid_of, until
from recovering import fresh_pool  # noqa: F401
from velo import stream_fn
from velo.errors import StreamClosed, WorkerDied

pytestmark = pytest.mark.every_backend

echo = functions.echo.options(mode="process")
pids = functions.pids.options(mode="process", workers=2)


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
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(victim.recv(), HANG)
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
            await asyncio.wait_for(send_on(), HANG)
        with pytest.raises((WorkerDied, StreamClosed)):
            await stream.recv()


async def pid_of_stream(stream):
    """The worker of a stream whose function says nothing."""
    from velo._process.clients import client_of

    links = client_of(asyncio.get_running_loop()).links.values()
    return next(link.pid for link in links if link.end.streams)


async def test_events_in_flight_are_counted():
    async with functions.never_reads.options(mode="process", buffer=64).open() as stream:
        assert await stream.recv() == "ready"
        await stream.send_batch(range(17))
        os.kill(await pid_of_stream(stream), signal.SIGKILL)
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(stream.recv(), HANG)
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
        await asyncio.wait_for(use(), HANG)
    if how not in ("send", "batch"):
        assert type(info.value) is WorkerDied


async def test_the_pool_replaces_a_dead_worker():
    one = functions.pids.options(mode="process", workers=1)
    seen = set()
    for _ in range(4):
        async with asyncio.timeout(HANG):
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
            await asyncio.wait_for(stream.recv(), HANG)
        assert (info.value.signal, info.value.exit_code, info.value.in_flight) == (None, 7, 1)


async def test_os_exit_zero_is_a_death_too():
    @stream_fn(mode="process")
    async def leaves(events):
        async for _ in events:
            os._exit(0)
            yield

    with pytest.raises(WorkerDied, match="code 0"):
        await asyncio.wait_for(leaves.run([1]), HANG)


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
        await asyncio.wait_for(faults.run([1]), HANG)
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
        await asyncio.wait_for(aborts.run([1]), HANG)


async def test_sigterm_at_a_worker_is_no_hang():
    stream = await functions.pids.options(mode="process").open()
    pid = await pid_of(stream)
    os.kill(pid, signal.SIGTERM)
    with pytest.raises((WorkerDied, StreamClosed)):
        await asyncio.wait_for(stream.recv(), HANG)
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
            assert await asyncio.wait_for(pid_of(stream), HANG) == pid
    async with asyncio.timeout(HANG):
        assert await echo.run([1]) == [1]


async def test_crashing_functions_do_not_close_the_pool():
    """Workers that served and then died are no reason to refuse the next stream."""

    @stream_fn(mode="process", workers=2)
    async def crashes(events):
        async for _ in events:
            os._exit(1)
            yield

    async with asyncio.timeout(HANG):
        for _ in range(7):
            with pytest.raises(WorkerDied):
                await crashes.run([1])
        assert await echo.run([1]) == [1]


async def test_many_streams_die_together():
    one = functions.pids.options(mode="process", workers=1)
    streams = [await one.open() for _ in range(50)]
    (pid,) = {await pid_of(stream) for stream in streams}  # each has begun
    waits = [asyncio.create_task(stream.recv()) for stream in streams]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), HANG)
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
        killed = 0
        while killed < (200 if long else 12):
            await asyncio.sleep(0.05)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victims.pop(), signal.SIGKILL)
                    killed += 1

    killing = asyncio.create_task(killer())
    number = 0
    while not killing.done():
        await asyncio.wait_for(asyncio.gather(*(one(number + n) for n in range(8))), HANG)
        number += 8
    await killing
    assert finished + died == number
    assert died > 0
    # On a loaded machine none may have lived long enough; now nobody is killed any more.
    await asyncio.gather(*(one(number + n) for n in range(8)))
    assert finished > 0


async def test_out_of_memory():
    """A worker at its limit raises `MemoryError` in the function, and goes on."""

    @stream_fn(mode="process", workers=1)
    async def grows(events):
        import os
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        async for size in events:
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, before[1]))
            try:
                yield os.getpid(), len(bytearray(size))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)

    async with grows.open() as witness:
        await witness.send(10)
        pid, _ = await witness.recv()
        with pytest.raises(MemoryError):
            await grows.run([8 << 30])
        await witness.send(20)
        assert await witness.recv() == (pid, 20)
