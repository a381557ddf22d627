"""Streams with `recover="replay"` outlive their workers."""

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

import functions
import key_sums
from helpers import HANG, blocked, cancel, drain, until
from recovering import fresh_pool, gate, kill_workers, links, sums  # noqa: F401
from velo import StreamConfig, stream_fn
from velo._process import clients
from velo.errors import ReplayDiverged, StallWarning, StreamClosed, WorkerDied

# What functions look at reaches the workers of the process's own supervisor.
pytestmark = pytest.mark.embedded
REPLAY = {"mode": "process", "recover": "replay", "workers": 1}


async def numbers(count, pause=0.0):
    for number in range(count):
        yield number
        if pause:
            await asyncio.sleep(pause)


async def test_local_variables_come_back():
    async with sums.open() as stream:
        got = []
        for number in range(1, 11):
            await stream.send(number)
            got.append(await stream.recv())
            if number % 3 == 0:
                await kill_workers()
        assert got == [sum(range(n + 1)) for n in range(1, 11)]


async def test_results_that_nobody_has_received_come_once():
    async with sums.open() as stream:
        await stream.send_batch([1, 2, 3])
        await until(lambda: stream.metrics.queued == 0)
        await kill_workers()
        await stream.send(4)
        await stream.end()
        assert await drain(stream) == [1, 3, 6, 10]


async def test_death_while_nothing_is_open():
    async with sums.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
    await kill_workers()
    assert await sums.run([1, 2]) == [1, 3]


async def test_a_stream_that_never_had_an_event():
    async with sums.open() as stream:
        await kill_workers()
        await stream.send(5)
        assert await stream.recv() == 5


async def test_a_stream_whose_last_result_was_received_is_left_alone():
    async with sums.open() as stream:
        await stream.send(1)
        await stream.end()
        assert await drain(stream) == [1]
        await kill_workers()
        with pytest.raises(StreamClosed):
            await stream.recv()


async def test_an_exception_before_the_death_comes_again():
    @stream_fn(**REPLAY)
    async def fails(events):
        async for event in events:
            if event == 3:
                raise KeyError(event)
            yield event

    async with contextlib.AsyncExitStack() as stack:
        stream = await stack.enter_async_context(fails.open())
        await stream.send_batch([1, 2, 3])
        assert await stream.recv() == 1
        await until(lambda: len(links()) == 1 and stream.metrics.queued == 0)
        await kill_workers()
        assert await stream.recv() == 2
        with pytest.raises(KeyError, match="3"):
            await stream.recv()


@pytest.mark.embedded
@pytest.mark.parametrize("how", ["recv", "send", "batch", "feed", "feed async", "iterate", "end"])
async def test_every_wait_simply_goes_on(how):
    """Whatever a task waits for when the worker dies, it gets."""
    gated = gates.options(buffer=2)
    async with gated.open() as stream:
        if how == "recv":
            task = asyncio.create_task(stream.recv())
            assert await blocked(task)
            await kill_workers()
            await stream.send("on")
            assert await asyncio.wait_for(task, HANG) == "on"
        elif how in ("send", "batch"):
            await stream.send_batch(["stop", 1])
            work = stream.send(2) if how == "send" else stream.send_batch([2, 3])
            task = asyncio.ensure_future(work)
            assert await blocked(task)
            open_gate()
            await kill_workers()
            got = [await asyncio.wait_for(stream.recv(), HANG) for _ in range(3)]
            await asyncio.wait_for(task, HANG)
            assert got == ["stop", 1, 2]
        elif how in ("feed", "feed async"):
            source = numbers(500) if how == "feed async" else range(500)
            got = []
            async for result in stream.feed(source):
                got.append(result)
                if result in (100, 300):
                    kill_now()
            assert got == list(range(500))
        elif how == "iterate":
            await stream.send_batch([1, 2])
            task = asyncio.create_task(drain(stream))
            assert await blocked(task)
            await kill_workers()
            await stream.send(3)
            await stream.end()
            assert await asyncio.wait_for(task, HANG) == [1, 2, 3]
        else:
            await stream.send_batch([1, 2])
            kill_now()
            await stream.end()
            assert await asyncio.wait_for(drain(stream), HANG) == [1, 2]


def open_gate():
    Path(os.environ["VELO_TEST_GATE"]).touch()


@stream_fn(**REPLAY)
async def gates(events):
    path = os.environ.get("VELO_TEST_GATE", "")
    async for event in events:
        while event == "stop" and not os.path.exists(path):
            await asyncio.sleep(0.005)
        yield event


def kill_now():
    for link in links():
        with contextlib.suppress(ProcessLookupError):
            os.kill(link.pid, signal.SIGKILL)


async def test_cancelled_waits_lose_nothing_while_there_is_no_worker():
    async with sums.options(buffer=4).open() as stream:
        got = []
        for number in range(1, 60):
            if number % 10 == 0:
                kill_now()
            while True:
                sending = asyncio.create_task(stream.send(number))
                done, _ = await asyncio.wait([sending], timeout=random.random() * 0.002)
                if done:
                    break
                await cancel(sending)
            while len(got) < number:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.random() * 0.002):
                        got.append(await stream.recv())
        assert got == [sum(range(n + 1)) for n in range(1, 60)]


async def test_closing_while_there_is_no_worker():
    """Leaving the block works the events off, wherever that happens."""
    async with functions.echo.options(**REPLAY).open() as stream:
        await stream.send_batch(range(10))
        kill_now()
    assert stream.metrics.queued == 0
    assert stream.closed


@contextlib.contextmanager
def no_new_worker():
    """Stops the process that forks workers."""
    zygote = psutil.Process(links()[0].pid).parent()
    zygote.suspend()
    try:
        yield
    finally:
        zygote.resume()


async def test_cancelling_while_there_is_no_worker():
    with contextlib.ExitStack() as stack:
        with pytest.raises(ZeroDivisionError):
            async with sums.open() as stream:
                await stream.send(1)
                assert await stream.recv() == 1
                stack.enter_context(no_new_worker())
                await kill_workers()
                raise ZeroDivisionError
        assert stream.closed
        assert not links()
    assert await sums.run([1]) == [1]


@pytest.mark.embedded
async def test_a_dropped_stream_is_not_recovered():
    stream = await sums.open()
    await stream.send(1)
    assert await stream.recv() == 1
    with no_new_worker():
        await kill_workers()
        assert not links()
        with pytest.warns(ResourceWarning):
            del stream
            import gc

            gc.collect()
    assert await sums.run([1]) == [1]
    await until(lambda: all(link.end.streams == 0 for link in links()))


async def test_the_idle_timeout_goes_on():
    async with sums.options(timeout=0.2).open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        await kill_workers()
        with pytest.raises(StreamClosed, match="idle for 0.2 s"):
            await asyncio.wait_for(stream.recv(), HANG)


async def test_the_second_worker_dies_too():
    """During the replay, and more than once."""
    async with sums.open() as stream:
        expected = []
        total = 0
        for number in range(2000):
            total += number
            expected.append(total)
        got = []

        async def killer():
            while True:
                before = len(got)
                for _ in range(3):
                    kill_now()
                    await until(links)
                    await asyncio.sleep(random.random() * 0.02)
                await until(lambda: len(got) > before)

        killing = asyncio.create_task(killer())
        async for result in stream.feed(range(1500)):
            got.append(result)
        killing.cancel()
        async for result in stream.feed(range(1500, 2000)):
            got.append(result)
        assert got == expected


@pytest.mark.embedded
async def test_run_and_run_sync():
    @stream_fn(**REPLAY)
    async def dies_once(events):
        flag = os.environ["VELO_TEST_GATE"]
        async for event in events:
            if event == 50 and not os.path.exists(flag):
                open(flag, "w").close()
                os._exit(1)
            yield event
        yield "end"

    assert await dies_once.run(range(100)) == [*range(100), "end"]
    os.unlink(os.environ["VELO_TEST_GATE"])
    assert await dies_once.run(numbers(100)) == [*range(100), "end"]
    os.unlink(os.environ["VELO_TEST_GATE"])
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, dies_once.run_sync, range(100)) == [*range(100), "end"]


async def test_keyed():
    async def kill():
        kill_now()

    source = [(n % 8, n) for n in range(800)]
    fn = key_sums.sums.options(**REPLAY | {"workers": 2})
    got = await key_sums.collect(fn.keyed(source, key=0), at=range(200, 801, 200), what=kill)
    assert got == key_sums.expected(source)


async def test_composed():
    both = sums | functions.echo.options(mode="process")
    assert both.config.recover == "replay"
    across = sums | functions.echo
    for fn in (both, across):
        async with fn.open() as stream:
            got = []
            for number in range(1, 7):
                await stream.send(number)
                got.append(await stream.recv())
                if number == 3:
                    await kill_workers()
            assert got == [1, 3, 6, 10, 15, 21]


async def test_arrays_and_what_is_held_of_them():
    """Views of the dead worker's memory stay what they are."""
    np = pytest.importorskip("numpy")
    async with functions.echo.options(**REPLAY).open() as stream:
        held = []
        for number in range(6):
            await stream.send(np.full(100_000, number))
            held.append(await stream.recv())
            if number == 3:
                await kill_workers()
        assert [int(array.sum()) for array in held] == [100_000 * n for n in range(6)]


async def test_what_has_no_order_is_not_compared():
    """Sets, and what is pickled, may be the same in other bytes."""

    class Thing:
        def __init__(self, name):
            self.name = name

    @stream_fn(**REPLAY)
    async def mixes(events):
        made = []
        async for event in events:
            made.append(Thing(event))
            yield {object() for _ in range(3)} and {str(n) for n in range(event + 5)}
            yield [t.name for t in made], len({id(t) for t in made})
            yield sorted(vars(made[-1]))

    async with mixes.open() as stream:
        got = []
        for number in range(4):
            await stream.send(number)
            got.append([await stream.recv() for _ in range(3)])
            await kill_workers()
        assert len(got) == 4


async def test_divergence_is_found():
    @stream_fn(**REPLAY)
    async def random_results(events):
        async for event in events:
            yield event, os.urandom(8)

    async with random_results.open() as stream:
        await stream.send_batch([1, 2])
        await stream.recv()
        await stream.recv()
        await kill_workers()
        with pytest.raises(ReplayDiverged, match="result 1 is another one") as info:
            await asyncio.wait_for(stream.recv(), HANG)
        assert (info.value.stream, info.value.result) == (stream.name, 1)
        with pytest.raises(StreamClosed):
            await stream.send(3)


@pytest.mark.embedded
@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_fewer_results_than_before_diverge(how):
    @stream_fn(**REPLAY)
    async def gives_less(events):
        flag = os.environ["VELO_TEST_GATE"]
        if os.path.exists(flag):
            if how == "raises":
                raise ValueError("another one")
            return
        open(flag, "w").close()
        async for event in events:
            yield event

    async with gives_less.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        await kill_workers()
        with pytest.raises(ReplayDiverged, match="result 1 did not come") as info:
            await asyncio.wait_for(stream.recv(), HANG)
        assert isinstance(info.value.__cause__, ValueError) == (how == "raises")


async def test_without_recovery_nothing_has_changed():
    async with sums.options(recover="none").open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        kill_now()
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(stream.recv(), HANG)


async def test_progress_never_goes_back():
    async with sums.options(buffer=8).open() as stream:
        seen = []
        got = []
        async for result in stream.feed(numbers(300, 0.0002)):
            got.append(result)
            seen.append(stream._progress())
            if len(got) in (50, 120, 200):
                kill_now()
        assert seen == sorted(seen)
        assert all(sent - handled <= 8 for sent, handled in seen)
        assert stream.metrics.results == 300
        assert stream.metrics.events == 300


async def test_a_stream_leaves_a_worker_that_lives():
    """On purpose: it goes on elsewhere, and the worker forgets it."""
    async with sums.open() as first, sums.open() as other, sums.options(recover="none").open() as x:
        for stream in (first, other, x):
            await stream.send(1)
            assert await stream.recv() == 1
        client = clients.client_of(asyncio.get_running_loop())
        counts = {link.number: link.end.streams for link in links()}
        both = max(counts, key=lambda number: counts[number])
        assert counts[both] == 2
        names = [stream.name for stream in (first, other, x)]
        assert client.send_away(both, names) >= 1
        await until(lambda: {link.number: link.end.streams for link in links()} != counts)
        await until(lambda: sum(link.end.streams for link in links()) == 3)
        for stream in (first, other, x):
            await stream.send(2)
            assert await stream.recv() == 3


async def test_where_there_is_no_other_worker_a_stream_stays():
    one = sums.options(workers=1)
    async with one.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        client = clients.client_of(asyncio.get_running_loop())
        assert client.send_away(links()[0].number, [stream.name]) == 1
        await stream.send(2)
        assert await asyncio.wait_for(stream.recv(), HANG) == 3


async def test_limits_hold_in_the_next_worker_too():
    """A function that hangs at an event is killed for it, wherever it runs; another goes on."""

    # A worker that has had no turn for so long while an event waits is killed as well.
    @stream_fn(**REPLAY, stall_timeout=1.0, max_restarts=1, on_poison="skip")
    async def hangs(events):
        async for event in events:
            while event == "hang":
                pass
            yield event

    async with hangs.open() as stream:
        await stream.send_batch([1, "hang", 2])
        with pytest.warns(StallWarning):
            assert [await asyncio.wait_for(stream.recv(), HANG) for _ in range(2)] == [1, 2]
    assert stream.metrics.dropped == 1


async def test_each_worker_leaves_a_recording(tmp_path):
    fn = functions.running_sum.options(**REPLAY, record=tmp_path)
    async with fn.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        await kill_workers()
        await stream.send(2)
        assert await stream.recv() == 3
    assert len(list(tmp_path.iterdir())) == 2


async def test_which_settings_go_together():
    with pytest.raises(ValueError, match="drop_oldest"):
        StreamConfig(recover="replay", full="drop_oldest")
    with pytest.raises(ValueError, match="on_poison"):
        StreamConfig(on_poison="ignore")
    with pytest.raises(ValueError, match="recover"):
        StreamConfig(recover="always")
    config = StreamConfig(recover="replay", on_poison=print)
    assert StreamConfig(**config.to_dict()) == config
    inline = sums.options(mode="inline")
    assert await inline.run([1, 2]) == [1, 3]


async def test_storm(long):
    """Kills at random instants, under load: what comes is what inline mode gives."""
    kills, streams, events = (1000, 64, 2000) if long else (15, 64, 400)
    rng = random.Random(7)
    expected = await storm.options(mode="inline").run(range(events))
    stop = False

    async def one():
        while not stop:
            async with storm.open() as stream:
                got = []
                async for result in stream.feed(range(events)):
                    got.append(result)
                await stream.end()
                got.extend(await drain(stream))
            assert got == expected

    killed = []
    tasks = [asyncio.create_task(one()) for _ in range(streams)]
    while len(killed) < kills and not any(task.done() for task in tasks):
        await asyncio.sleep(rng.random() * 0.1)
        if victims := links():
            pid = rng.choice(victims).pid
            if pid not in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
    stop = True
    await asyncio.wait_for(asyncio.gather(*tasks), HANG)


async def test_streams_share_the_workers_that_come_after_all_have_died():
    async with contextlib.AsyncExitStack() as stack:
        two = sums.options(workers=2)
        streams = [await stack.enter_async_context(two.open()) for _ in range(8)]
        for stream in streams:
            await stream.send(1)
            assert await stream.recv() == 1
        kill_now()
        for stream in streams:
            await stream.send(1)
        assert [await asyncio.wait_for(stream.recv(), HANG) for stream in streams] == [2] * 8
        assert [link.end.streams for link in links()] == [4, 4]


@pytest.mark.parametrize("count", [1, 8, 64])
async def test_how_long_it_takes(long, capsys, count):
    """From the kill of all workers to the next answer of each stream; journals are short."""

    @stream_fn(mode="process", recover="replay", workers=2)
    async def totals(events):  # by value: what is measured is not the import of a module
        total = 0
        async for event in events:
            total += event
            yield total

    async def answers(stream, number, began):
        await stream.send(0)
        assert await stream.recv() == number
        pauses.append(time.perf_counter() - began)

    pauses = []
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(totals.open()) for _ in range(count)]
        for number in range(1, 201 if long else 4):
            for stream in streams:
                await stream.send(1)
                assert await stream.recv() == number
            began = time.perf_counter()
            kill_now()
            await asyncio.gather(*(answers(stream, number, began) for stream in streams))
    pauses.sort()
    if long:
        p50, p99 = (1e3 * pauses[int(len(pauses) * part)] for part in (0.5, 0.99))
        with capsys.disabled():
            print(f"\nrecovery of {count} streams: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


@stream_fn(mode="process", recover="replay", workers=2, buffer=32)
async def storm(events):
    total = 0
    async for event in events:
        total = (total * 31 + event) % 1_000_003
        yield "r", event, total
        if event % 7 == 0:
            yield [total] * (event % 5)
        if event % 50 == 0:
            await asyncio.sleep(0.001)
    yield total
