"""Who may use a stream at the same time: a sender and a receiver, in its own loop and thread."""

import asyncio
import threading

import pytest

import functions
from helpers import HANG, blocked, cancel, one_is_refused
from velo import stream_fn
from velo.errors import StreamBusy


async def receive(stream):
    return await stream.recv()


async def take_batch(stream):
    (result,) = await stream.recv_batch()
    return result


async def take_next(stream):
    return await anext(aiter(stream))


async def send(stream, event):
    await stream.send(event)


async def send_batch(stream, events):
    await stream.send_batch(events)


async def test_one_sender_and_one_receiver(way):
    async with way.open(functions.echo, buffer=3) as stream:

        async def send_all():
            for number in range(2000):
                await stream.send(number)
            await stream.end()

        sending = asyncio.create_task(send_all())
        assert [result async for result in stream] == list(range(2000))
        await sending


async def test_two_receivers(way):
    async with way.open(functions.echo) as stream:
        waiting = asyncio.create_task(receive(stream))
        assert await blocked(waiting, 3)
        for operation in (receive(stream), take_batch(stream), take_next(stream)):
            error, waiting = await one_is_refused(waiting, operation)
            assert type(error) is StreamBusy
            assert "two tasks receive from" in str(error)
        await stream.send(1)
        assert await asyncio.wait_for(waiting, HANG) == 1
        await stream.send(2)
        assert await stream.recv() == 2


async def test_two_senders(way):
    never = way.fn(functions.never_reads, buffer=1, close_timeout=0.05)
    async with never.open() as stream:
        await stream.send(1)
        waiting = asyncio.create_task(send(stream, 2))
        assert await blocked(waiting, 3)
        for operation in (send(stream, 3), send_batch(stream, [3])):
            error, waiting = await one_is_refused(waiting, operation)
            assert type(error) is StreamBusy
            assert "two tasks send to" in str(error)
        assert not waiting.done()
        await cancel(waiting)


async def test_a_cancelled_waiter_frees_its_place(way):
    async with way.open(functions.echo) as stream:
        first = asyncio.create_task(receive(stream))
        await blocked(first, 3)
        await cancel(first)
        second = asyncio.create_task(receive(stream))
        await blocked(second, 3)
        await stream.send(1)
        assert await asyncio.wait_for(second, HANG) == 1


async def test_senders_that_need_not_wait_may_be_many(way):
    """Their order is open: a send whose turn is over lets the other tasks go first."""
    async with way.open(functions.echo, buffer=100) as stream:
        await asyncio.gather(*(send(stream, number) for number in range(50)))
        assert sorted([await stream.recv() for _ in range(50)]) == list(range(50))


OPERATIONS = {
    "send": lambda stream: stream.send(1),
    "send_batch": lambda stream: stream.send_batch([1]),
    "recv": lambda stream: stream.recv(),
    "recv_batch": lambda stream: stream.recv_batch(),
    "end": lambda stream: stream.end(),
    "iterate": lambda stream: anext(aiter(stream)),
    "feed": lambda stream: anext(aiter(stream.feed([1]))),
}


@pytest.fixture(params=OPERATIONS)
def operation(request):
    return OPERATIONS[request.param]


async def one(operation, stream):
    return await operation(stream)


async def test_use_from_another_thread(way, operation):
    async with way.open(functions.echo) as stream:
        caught = []

        def use():
            try:
                asyncio.run(asyncio.wait_for(one(operation, stream), HANG))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        await asyncio.to_thread(thread.join, HANG)
        (error,) = caught
        assert type(error) is StreamBusy, error
        assert "another" in str(error)
        await stream.send("fine")
        assert await stream.recv() == "fine"


def test_use_from_another_loop(way, operation):
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(open_it(way.fn(functions.echo)))
    try:
        with pytest.raises(StreamBusy, match="another event loop"):
            asyncio.run(asyncio.wait_for(one(operation, stream), HANG))
        loop.run_until_complete(send(stream, "fine"))
        assert loop.run_until_complete(receive(stream)) == "fine"
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


async def open_it(fn):
    return await fn.open()


async def test_the_thread_safe_way(way):
    """As the message says: hand it to the stream's loop."""
    async with way.open(functions.echo) as stream:
        loop = asyncio.get_running_loop()

        def use():
            future = asyncio.run_coroutine_threadsafe(send(stream, 5), loop)
            return future.result(5)

        await asyncio.to_thread(use)
        assert await stream.recv() == 5


async def test_metrics_may_be_read_from_another_thread(way):
    """A monitor thread looks at busy streams."""
    async with way.open(functions.echo) as stream:
        failures, done = [], threading.Event()

        def watch():
            while not done.is_set():
                try:
                    assert stream.metrics.events >= 0
                    repr(stream)
                except BaseException as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            async for _ in stream.feed(range(5000)):
                pass
        finally:
            done.set()
            await asyncio.to_thread(thread.join, HANG)
        assert failures == []


async def test_many_streams_at_once(way):
    summing = way.fn(functions.running_sum)

    async def use(number):
        async with summing.open() as stream:
            for step in range(1, 6):
                await stream.send(number)
                assert await stream.recv() == number * step

    await asyncio.gather(*(use(number) for number in range(100)))


async def test_a_busy_stream_lets_others_have_their_turn(way):
    """One worker, one stream with no end of work, another one that asks."""

    @stream_fn(workers=1)
    async def echo(events):
        async for event in events:
            yield event

    async def flood(stream):
        while True:
            async for _ in stream.feed(range(1000)):
                pass

    async with way.open(echo) as busy, way.open(echo) as polite:
        flooding = asyncio.create_task(flood(busy))
        async with asyncio.timeout(HANG):
            for number in range(20):
                await polite.send(number)
                assert await polite.recv() == number
        await cancel(flooding)


def test_threads_with_streams_of_their_own(way):
    failures = []

    def work(number):
        async def use():
            async with way.open(functions.running_sum) as stream:
                for step in range(1, 100):
                    await stream.send(number)
                    assert await stream.recv() == number * step

        try:
            asyncio.run(asyncio.wait_for(use(), HANG))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert failures == []
