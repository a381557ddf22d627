"""Cancellation at any point loses nothing, doubles nothing, and leaves the stream usable."""

import asyncio
import contextlib
import random

import pytest

import functions
from helpers import HANG, blocked, cancel, drain
from velo import stream_fn
from velo.errors import StreamClosed


async def test_cancelled_recv_loses_nothing(way):
    async with way.open(functions.echo) as stream:
        for number in range(20):
            receiving = asyncio.create_task(stream.recv())
            assert await blocked(receiving, 2)
            await cancel(receiving)
            await stream.send(number)
            assert await stream.recv() == number


async def test_recv_cancelled_when_the_result_is_there(way):
    """The result came, the task has not run yet, and is cancelled: the result stays."""
    async with way.open(functions.echo) as stream:
        for number in range(50):
            receiving = asyncio.create_task(stream.recv())
            await asyncio.sleep(0)
            await stream.send(number)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            receiving.cancel()
            try:
                got = await receiving
            except asyncio.CancelledError:
                got = await asyncio.wait_for(stream.recv(), HANG)
            assert got == number


async def test_recv_with_a_timeout(way):
    async with way.open(functions.echo) as stream:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await stream.recv()
        await stream.send(1)
        assert await stream.recv() == 1


async def test_cancelled_send_sends_nothing(way, tmp_path):
    path = str(tmp_path / "gate")
    async with way.open(functions.gate, buffer=2) as stream:
        await stream.send_batch([path, 1, 2])
        for _ in range(5):
            sending = asyncio.create_task(stream.send("never"))
            assert await blocked(sending, 5)
            await cancel(sending)
        functions.mark(path)
        await stream.send(3)
        await stream.end()
        assert await drain(stream) == [1, 2, 3]


async def test_cancelled_batch_loses_nothing_of_its_iterator(way, tmp_path):
    """What was taken from the iterator is sent, by the next send if not before."""
    path = str(tmp_path / "gate")
    source = iter(range(10))
    async with way.open(functions.gate, buffer=2) as stream:
        await stream.send(path)
        sending = asyncio.create_task(stream.send_batch(source))
        assert await blocked(sending)
        await cancel(sending)
        functions.mark(path)
        receiving = asyncio.create_task(drain(stream))
        await stream.send_batch(source)
        await stream.end()
        assert await receiving == list(range(10))


@pytest.mark.parametrize("then", ["end", "send", "feed", "feed async", "batch"])
async def test_what_was_taken_goes_first_whatever_comes_then(way, tmp_path, then):
    path = str(tmp_path / "gate")
    source = iter(range(10))

    async def later():
        yield "later"

    async with way.open(functions.gate, buffer=2) as stream:
        await stream.send(path)
        sending = asyncio.create_task(stream.send_batch(source))
        assert await blocked(sending)
        await cancel(sending)
        functions.mark(path)
        got = []
        if then == "send":
            await stream.send("later")
        elif then == "batch":
            await stream.send_batch(["later"])
        elif then == "feed":
            got.extend([r async for r in stream.feed(["later"])])
        elif then == "feed async":
            got.extend([r async for r in stream.feed(later())])
        await stream.end()
        got.extend(await drain(stream))
        rest = list(source)
        assert rest, "the batch should have been cut"
        expected = [number for number in range(10) if number not in rest]
        assert got == expected + ["later"] * (then != "end")


async def test_taken_from_a_batch_and_then_from_a_source(way, tmp_path):
    """Two sources, both cut short: neither event overwrites the other."""
    path = str(tmp_path / "gate")
    one, taken = iter(range(10)), []

    async def other():
        for number in range(100, 110):
            taken.append(number)
            yield number

    async with way.open(functions.gate, buffer=2) as stream:
        await stream.send(path)
        sending = asyncio.create_task(stream.send_batch(one))
        assert await blocked(sending)
        await cancel(sending)
        feeding = asyncio.create_task(collect(stream.feed(other()), []))
        assert await blocked(feeding)
        await cancel(feeding)
        functions.mark(path)
        await stream.end()
        got = await drain(stream)
        left = list(one)
        assert got == [n for n in range(10) if n not in left] + taken


@pytest.mark.parametrize("then", ["end", "send", "batch", "feed", "feed async", "wait again"])
async def test_a_cancelled_feed_that_somebody_still_holds(way, tmp_path, then):
    """As a traceback does. What it has taken goes first, and it is in nobody's way."""
    path = str(tmp_path / "gate")
    taken = []

    async def source():
        for number in range(100, 110):
            taken.append(number)
            yield number

    async def later():
        yield "later"

    async with way.open(functions.gate, buffer=2) as stream:
        await stream.send(path)
        feed = stream.feed(source())
        feeding = asyncio.create_task(collect(feed, []))
        assert await blocked(feeding)
        await cancel(feeding)
        expected = list(taken)
        got = []
        if then == "end":
            functions.mark(path)
            await stream.end()
        elif then == "wait again":
            functions.mark(path)
            await collect(feed, got)
            await stream.end()
            expected = list(range(100, 110))
        else:
            # There is no room: this has to wait where the feed did.
            if then.startswith("feed"):
                events = ["later"] if then == "feed" else later()
                work = asyncio.create_task(collect(stream.feed(events), got))
            elif then == "batch":
                work = asyncio.ensure_future(stream.send_batch(["later"]))
            else:
                work = asyncio.ensure_future(stream.send("later"))
            assert await blocked(work)
            functions.mark(path)
            await work
            await stream.end()
            expected.append("later")
        got.extend(await drain(stream))
        assert got == expected
        await feed.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(feed)


@pytest.mark.parametrize("full", ["drop_oldest", "error"])
async def test_feeding_from_an_async_source_always_waits(way, full):
    async def source():
        for number in range(1000):
            yield number

    async with way.open(functions.echo, buffer=4, full=full) as stream:
        assert [result async for result in stream.feed(source())] == list(range(1000))


async def test_a_feed_that_is_waited_for_in_turns_goes_on(way):
    """Each wait is cut short, in the middle of whatever the feed does."""

    async def source():
        for number in range(300):
            if number % 50 == 0:
                await asyncio.sleep(0.002)
            yield number

    got = []
    async with way.open(functions.echo, buffer=4) as stream:
        feed = stream.feed(source())
        turns = 0
        while True:
            turns += 1
            try:
                async with asyncio.timeout(0.0005 * (turns % 3)):
                    got.append(await anext(feed))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
    assert got == list(range(300))


async def collect(results, into):
    async for result in results:
        into.append(result)


async def test_cancelled_end_leaves_the_stream_usable(way):
    async with way.open(functions.echo) as stream:
        ending = asyncio.create_task(stream.end())
        ending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ending
        with contextlib.suppress(StreamClosed):
            await stream.send(1)
            assert await stream.recv() == 1
        await stream.end()
        assert await drain(stream) == []


async def test_closing_a_feed_is_cancelled_as_any_wait(way):
    """While the source takes its time to end."""
    ends = asyncio.Event()

    async def source():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await ends.wait()

    async with way.open(functions.echo) as stream:
        feed = stream.feed(source())
        assert await anext(feed) == 1
        closing = asyncio.create_task(feed.aclose())
        assert await blocked(closing)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        ends.set()
        await stream.send(2)
        assert await stream.recv() == 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_cancelled_feed_loses_nothing(way, asynchronous):
    """What was taken from the source comes out, in order, in the next feed or at the end."""
    taken = []

    def plain():
        for number in range(10_000):
            taken.append(number)
            yield number

    async def asynced():
        # A source that is cancelled inside itself would lose what it holds, whoever cancels it.
        for number in plain():
            yield number
            await asyncio.sleep(0)

    source = asynced() if asynchronous else plain()
    got = []
    async with way.open(functions.echo, buffer=8) as stream:
        feeding = asyncio.create_task(collect(stream.feed(source), got))
        while len(got) < 100:
            await asyncio.sleep(0)
        await cancel(feeding)
        await stream.end()
        await collect(stream, got)
    # The thread that reads a plain source may have one more event in hand as the input ends.
    assert got == taken[: len(got)]
    assert len(taken) - len(got) <= (0 if asynchronous else 1)
    assert len(taken) < 10_000


async def test_cancelled_open_opens_nothing(way):
    limited = way.fn(functions.echo, max_concurrent=3, overflow="error", workers=1)
    for turns in [*range(6)] * 10:
        opening = asyncio.create_task(open_it(limited))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            stream = await opening
        except asyncio.CancelledError:
            continue
        await stream.aclose()
    streams = [await limited.open() for _ in range(3)]
    for stream in streams:
        await stream.aclose()


async def open_it(fn):
    return await fn.open()


@pytest.mark.workers
async def test_cancelled_first_open_of_a_loop(way):
    """While the first worker is being started."""
    from velo._process import clients

    clients.shutdown()
    fn = way.fn(functions.echo)
    opening = asyncio.create_task(open_it(fn))
    await asyncio.sleep(0)
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await opening).aclose()
    assert await asyncio.wait_for(fn.run([1, 2]), HANG) == [1, 2]


async def test_cancelled_wait_for_a_place(way):
    limited = way.fn(functions.echo, max_concurrent=1)
    async with limited.open():
        waits = [asyncio.create_task(open_it(limited)) for _ in range(5)]
        await blocked(waits[0], 3)
        for task in waits[:4]:
            await cancel(task)
    stream = await asyncio.wait_for(waits[4], HANG)
    await stream.aclose()


async def test_place_that_was_handed_to_a_cancelled_task(way):
    limited = way.fn(functions.echo, max_concurrent=1)
    stream = await limited.open()
    waiting = asyncio.create_task(open_it(limited))
    await blocked(waiting, 3)
    await stream.aclose()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await waiting).aclose()
    async with asyncio.timeout(HANG):
        async with limited.open():
            pass


async def test_cancelled_run_closes_its_stream(way, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn(max_concurrent=1)
    async def cleans(events):
        try:
            async for _ in events:
                functions.mark(path, "e")
                await asyncio.sleep(3600)
                yield
        finally:
            functions.mark(path, "f")

    running = asyncio.create_task(way.run(cleans, [1]))
    while not functions.marks(path):
        await asyncio.sleep(0.002)
    await cancel(running)
    assert functions.marks(path) == "ef"
    async with asyncio.timeout(HANG), way.open(cleans):
        pass


async def test_storm(mode, long):
    """Random cancellations of everything: nothing is lost or doubled, nothing is stuck."""
    rng = random.Random(17)
    rounds = 10_000 if long else 150
    done = 0
    while done < rounds:
        done += await one_stream(mode, rng, min(25, rounds - done))


async def one_stream(mode, rng, cancellations):
    """One stream through many cancelled sends, receives, batches and feeds."""
    numbers = iter(range(10**9))
    sent, got, cancelled = [], [], 0
    fn = functions.echo.options(mode=mode, buffer=rng.choice([1, 2, 5, 64]))

    def take():
        while True:
            number = next(numbers)
            sent.append(number)
            yield number

    async def take_async():
        for number in take():
            yield number
            if rng.random() < 0.3:
                await asyncio.sleep(0)

    async def send():
        number = next(numbers)
        await stream.send(number)
        sent.append(number)

    async def receive():
        got.append(await stream.recv())

    async def receive_batch():
        got.extend(await stream.recv_batch(rng.choice([1, 3, 100])))

    async def send_batch():
        await stream.send_batch(limited(take(), rng.randrange(20)))

    async def feed():
        async for result in stream.feed(limited(take(), rng.randrange(60))):
            got.append(result)

    async def feed_async():
        async with contextlib.aclosing(stream.feed(take_async())) as results:
            async for result in results:
                got.append(result)

    senders, receivers = [send, send_batch], [receive, receive_batch]
    both = [feed, feed_async]
    async with asyncio.timeout(HANG), fn.open() as stream:
        while cancelled < cancellations:
            if rng.random() < 0.4:
                tasks = [asyncio.create_task(rng.choice(both)())]
            else:
                tasks = [
                    asyncio.create_task(rng.choice(senders)()),
                    asyncio.create_task(rng.choice(receivers)()),
                ]
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(rng.choice([0, 0, 0.0005]))
            for task in tasks:
                cancelled += task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        ending = asyncio.create_task(end(stream))
        async for result in stream:
            got.append(result)
        await ending
    assert got == sent
    return cancelled


def limited(iterator, count):
    """Takes no more than it gives."""
    for _ in range(count):
        yield next(iterator)


async def end(stream):
    await stream.end()


async def test_storm_of_opens(way, long):
    """Opening is cancelled at random; the places and the workers stay right."""
    rng = random.Random(3)
    fn = way.fn(functions.echo, max_concurrent=4, workers=2)

    async def use():
        async with fn.open() as stream:
            await stream.send(1)
            assert await stream.recv() == 1

    for _ in range(400 if long else 30):
        tasks = [asyncio.create_task(use()) for _ in range(10)]
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
        for task in rng.sample(tasks, 5):
            task.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), HANG)
        for outcome in outcomes:
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    async with asyncio.timeout(HANG):
        streams = [await fn.open() for _ in range(4)]
        for stream in streams:
            await stream.aclose()


async def test_storm_of_keyed(way, long):
    """A cancelled `keyed` leaves no stream behind."""
    rng = random.Random(11)
    fn = way.fn(functions.echo, max_concurrent=3, buffer=2)

    async def source():
        for number in range(100_000):
            if rng.random() < 0.1:
                await asyncio.sleep(0)
            yield number

    async def use():
        async with contextlib.aclosing(fn.keyed(source(), key=lambda e: e % 5)) as results:
            async for _ in results:
                pass

    for _ in range(300 if long else 20):
        task = asyncio.create_task(use())
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), HANG)
    async with asyncio.timeout(HANG):
        streams = [await fn.open() for _ in range(3)]
        for stream in streams:
            await stream.aclose()
