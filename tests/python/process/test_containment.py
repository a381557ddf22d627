"""What goes wrong stays where it belongs: memory, neighbours, and the deaths of those around."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest

import functions
from helpers import HANG, alive, until
from recovering import fresh_pool  # noqa: F401
from standalone import Daemon
from velo import stream_fn
from velo._process import clients
from velo.errors import SlowStepWarning, WorkerDied

pytestmark = [pytest.mark.every_backend, pytest.mark.slow]

MIB = 1 << 20


@pytest.fixture
def standalone(tmp_path):
    """A daemon for each test: a worker in which others have left something detached lives on."""
    daemon = Daemon(tmp_path / "s.sock")
    yield str(daemon.path)
    clients.shutdown()
    daemon.close()


@stream_fn(mode="process", workers=1)
async def hoards(events):
    """Keeps as many MiB as each event says, and tells who does so."""
    kept = []
    async for size in events:
        if size < 0:
            kept.clear()
        else:
            kept.append(b"x" * (size * MIB))
        yield os.getpid()


def own_memory(pid):
    memory = psutil.Process(pid).memory_info()
    return memory.rss - memory.shared


@stream_fn(mode="process", workers=1, recover="replay")
async def counts(events):
    """Counts what it keeps, in MiB, and leaves its process id where each event says."""
    kept = []
    async for where, size in events:
        kept.append(b"x" * (size * MIB))
        Path(where).write_text(str(os.getpid()))
        yield len(kept)


class Counted:
    """A stream of `counts`. Its results could not be compared if they said where it is."""

    numbers = itertools.count()

    def __init__(self, stream, folder):
        self.stream = stream
        self.where = folder / str(next(self.numbers))
        self.count = 0

    async def pid(self, size=0):
        """Where it is, once it has counted on."""
        self.count += 1
        got = await ask(self.stream, (str(self.where), size))
        assert got == self.count, "nothing is lost or doubled on the way"
        return int(self.where.read_text())

    async def moves(self, there, timeout=HANG):
        """Counts on until it is there."""
        async with asyncio.timeout(timeout):
            while not there(pid := await self.pid()):
                await asyncio.sleep(0.002)
        return pid


def links():
    client = clients.client_of(asyncio.get_running_loop())
    return {link.pid: link for link in client.links.values()}


async def ask(stream, event):
    await stream.send(event)
    return await asyncio.wait_for(stream.recv(), HANG)


async def pid_and_memory():
    """A worker, and what it has when it has done nothing."""
    async with hoards.open() as stream:
        pid = await ask(stream, 0)
        return pid, own_memory(pid)


async def test_a_worker_that_outgrows_its_limit_finishes_its_streams_and_no_more():
    _, base = await pid_and_memory()
    limited = hoards.options(max_worker_memory=base + 40 * MIB)
    async with limited.open() as stream, limited.open() as beside:
        pid = await ask(stream, 0)
        assert await ask(beside, 0) == pid
        assert await ask(stream, 60) == pid
        await until(lambda: links()[pid].leaving)
        async with limited.open() as new:
            other = await ask(new, 0)
            assert other != pid, "new streams go to a new worker"
        assert await ask(stream, -1) == pid, "those that it has go on"
        assert await ask(beside, 0) == pid
    await until(lambda: not alive(pid))
    assert alive(other)


async def test_streams_that_recover_leave_a_worker_that_outgrows_its_limit(tmp_path):
    _, base = await pid_and_memory()
    limit = base + 40 * MIB
    async with (
        hoards.options(max_worker_memory=limit).open() as hoard,
        counts.options(max_worker_memory=limit).open() as limited,
        counts.open() as unlimited,
    ):
        moving = [Counted(limited, tmp_path), Counted(unlimited, tmp_path)]
        old = await ask(hoard, 60)
        pids = {await stream.moves(lambda pid: pid != old) for stream in moving}
        assert len(pids) == 1, "one worker instead of the old one"
        assert await ask(hoard, -1) == old, "it cannot be moved, and may end there"
        assert {await stream.pid() for stream in moving} == pids
    await until(lambda: not alive(old))


async def test_a_stream_that_outgrows_the_next_worker_too_is_not_moved_for_ever(tmp_path):
    _, base = await pid_and_memory()
    async with counts.options(max_worker_memory=base + 40 * MIB).open() as stream:
        counted = Counted(stream, tmp_path)
        first = await counted.pid(60)
        second = await counted.moves(lambda pid: pid != first)
        await until(lambda: links()[second].leaving)
        for _ in range(20):
            assert await counted.pid() == second


@stream_fn(mode="process", workers=1)
async def hoards_in_a_thread(events):
    """Keeps memory outside of its steps: once there is a file of the event's name."""
    kept = []

    def keep(path, size):
        while not os.path.exists(path):
            time.sleep(0.001)
        kept.append(b"x" * (size * MIB))

    async for path, size in events:
        threading.Thread(target=keep, args=(path, size), daemon=True).start()
        yield os.getpid()


async def test_a_worker_with_twice_its_limit_is_killed_and_says_so(tmp_path):
    _, base = await pid_and_memory()
    limit = base + 20 * MIB
    path = str(tmp_path / "gate")
    async with hoards_in_a_thread.options(max_worker_memory=limit).open() as stream:
        await ask(stream, (path, 2 * limit // MIB))
        functions.mark(path)
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(stream.recv(), HANG)
    error = info.value
    assert (error.signal, error.culprit) == (signal.SIGKILL, None)
    assert "`max_worker_memory`" in error.why
    assert f"({limit // MIB} MiB)" in error.why
    assert error.why in str(error)
    assert await hoards.run([0])


async def test_shared_memory_is_not_the_workers():
    """What streams have in their rings is not counted."""
    np = pytest.importorskip("numpy")

    @stream_fn(mode="process", workers=1, max_bytes=2**30)
    async def keeps(events):
        kept = []
        async for frame in events:
            kept.append(frame)
            frame.max()  # brings its pages in
            yield os.getpid()

    frame = np.zeros(10 * MIB, np.uint8)
    _, small = await pid_and_memory()
    async with keeps.open() as stream:
        pid = await ask(stream, frame)  # imports numpy
        base = own_memory(pid)
    async with keeps.options(max_worker_memory=base + 50 * MIB).open() as stream:
        for _ in range(20):
            assert await ask(stream, frame) == pid
        # Once another worker is found to have outgrown its limit, this one was looked at too.
        hoarding = hoards.options(workers=2, max_worker_memory=small + 50 * MIB)
        async with hoarding.open() as hoard:
            other = await ask(hoard, 80)
            assert other != pid
            await until(lambda: links()[other].leaving)
        assert psutil.Process(pid).memory_info().rss > base + 150 * MIB
        assert not links()[pid].leaving


def named(caught, stream):
    """The warnings about a stream; on a busy machine others may have a slow step too."""
    texts = [str(w.message) for w in caught if w.category is SlowStepWarning]
    return [text for text in texts if f"`{stream.name}` held up" in text]


async def test_one_that_holds_its_neighbours_up_is_named_and_avoided():
    nap = functions.nap.options(mode="process", workers=2)
    pids = functions.pids.options(mode="process", workers=2)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(pids.open())
        away = await ask(first, 0)
        second = await stack.enter_async_context(pids.open())
        crowded = await ask(second, 0)
        assert crowded != away
        # The next one goes where the fewest are; make that the second worker.
        for _ in range(3):
            await stack.enter_async_context(pids.open())
        stream = await stack.enter_async_context(nap.open())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                await ask(stream, 0.1)
            slow = links()[crowded]
            await until(lambda: slow.end.slow)
            await until(lambda: named(caught, stream))
        assert len(named(caught, stream)) == 1, "once in a while"
        for _ in range(6):
            new = await stack.enter_async_context(pids.open())
            # On a busy machine, a stream of the other worker may have had slow steps as well.
            assert await ask(new, 0) != slow.pid or links()[away].end.slow
        await stream.aclose()
        assert not slow.end.slow
        new = await stack.enter_async_context(pids.open())
        assert await ask(new, 0) == slow.pid, "it has fewer, and nobody holds it up"


@pytest.mark.filterwarnings("ignore::velo.errors.SlowStepWarning")
async def test_streams_that_recover_leave_one_that_holds_them_up(tmp_path):
    moving = counts.options(workers=2)
    async with contextlib.AsyncExitStack() as stack:

        async def opened(fn):
            return await stack.enter_async_context(fn.open())

        # The worker with the fewest streams gets the next one: here they alternate.
        placed = [Counted(await opened(moving), tmp_path) for _ in range(4)]
        first = await placed[0].pid()
        other = await placed[1].pid()
        assert [await stream.pid() for stream in placed] == [first, other] * 2
        stays = Counted(await opened(moving.options(recover="none")), tmp_path)
        await opened(moving)
        slow = await opened(functions.nap.options(mode="process", workers=2, recover="replay"))
        await ask(slow, 0.1)
        assert links()[first].end.streams == 4
        assert await placed[0].pid() == first, "one slow step is no habit"
        for _ in range(3):
            await ask(slow, 0.1)
        for stream in (placed[0], placed[2]):
            await stream.moves(other.__eq__)
        assert await stays.pid() == first, "it cannot be moved"
        await until(lambda: links()[first].end.streams == 2)
        await ask(slow, 0)
        assert links()[first].end.streams == 2, "the slow one has stayed"


@pytest.mark.filterwarnings("ignore::velo.errors.SlowStepWarning")
async def test_where_there_is_no_other_worker_they_stay(tmp_path):
    nap = functions.nap.options(mode="process", workers=1)
    async with counts.open() as beside, nap.open() as stream:
        counted = Counted(beside, tmp_path)
        where = await counted.pid()
        for _ in range(4):
            await ask(stream, 0.1)
        await until(lambda: links()[where].end.slow)
        for _ in range(20):
            assert await counted.pid() == where


async def test_one_that_is_alone_holds_up_nobody():
    nap = functions.nap.options(mode="process", workers=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await nap.run([0.1, 0.1])
        await functions.echo.options(mode="process", workers=1).run([1])
    assert not [w for w in caught if w.category is SlowStepWarning]


async def test_the_zygote_dies_under_load():
    """Streams go on as if nothing had happened, and new workers are made."""
    pids = functions.pids.options(mode="process", workers=2)

    async def busy(stream, count):
        seen = set()
        async for pid in stream.feed(range(count)):
            seen.add(pid)
        return seen

    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(pids.open()) for _ in range(8)]
        first = {await ask(stream, 0) for stream in streams}
        feeding = [asyncio.create_task(busy(stream, 20_000)) for stream in streams]
        zygote = psutil.Process(next(iter(first))).ppid()
        assert zygote != os.getpid()
        os.kill(zygote, signal.SIGKILL)
        await until(lambda: not alive(zygote))
        seen = await asyncio.wait_for(asyncio.gather(*feeding), HANG)
        assert set().union(*seen) == first, "no worker died with it"
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(WorkerDied):
                await asyncio.wait_for(stream.recv(), HANG)
    assert await asyncio.wait_for(functions.echo.options(mode="process").run([1]), HANG) == [1]


async def test_what_a_function_has_started_is_its_own_and_outlives_a_kill():
    @stream_fn(mode="process", workers=1)
    async def starts(events):
        async for _ in events:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            yield os.getpid(), child.pid

    async with starts.open() as stream:
        pid, child = await ask(stream, 0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(stream.recv(), HANG)
    await until(lambda: not alive(pid))
    try:
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
    await until(lambda: not alive(child))
