"""The life of a stream: events in, results out, half-close, early returns, ends of all kinds."""

import asyncio

import pytest

import functions
from functions import marks
from helpers import HANG, blocked, drain, until
from velo import stream_fn
from velo.errors import StreamClosed

pytestmark = pytest.mark.every_backend


async def test_state_lives_between_events(way):
    async with way.open(functions.running_sum) as stream:
        for event, expected in ((1, 1), (2, 3), (3, 6)):
            await stream.send(event)
            assert await stream.recv() == expected


async def test_streams_have_their_own_state(way):
    summing = way.fn(functions.running_sum)
    async with summing.open() as one, summing.open() as other:
        await one.send(1)
        await other.send(10)
        await one.send(1)
        assert [await one.recv(), await one.recv(), await other.recv()] == [1, 2, 10]


@pytest.mark.parametrize("counts", [[0], [1], [3], [0, 0, 2, 0, 1, 5, 0], [1000]])
async def test_any_number_of_results_per_event(way, counts):
    results = await way.run(functions.repeat, counts)
    assert results == [(count, number) for count in counts for number in range(count)]


async def test_end_drains(way):
    async with way.open(functions.echo) as stream:
        await stream.send_batch(range(50))
        await stream.end()
        assert await drain(stream) == list(range(50))


async def test_results_after_the_loop(way):
    async with way.open(functions.after_loop) as stream:
        await stream.send_batch([1, 2])
        await stream.end()
        assert await drain(stream) == [1, 2, "done"]


async def test_recv_after_the_last_result_says_closed(way):
    async with way.open(functions.echo) as stream:
        await stream.send(1)
        await stream.end()
        assert await stream.recv() == 1
        for _ in range(2):
            with pytest.raises(StreamClosed):
                await stream.recv()
        assert await drain(stream) == []


async def test_send_after_end_says_closed(way):
    async with way.open(functions.echo) as stream:
        await stream.end()
        with pytest.raises(StreamClosed, match=r"end\(\)"):
            await stream.send(1)
        with pytest.raises(StreamClosed):
            await stream.send_batch([1, 2])
        assert stream.closed


async def test_end_twice_is_harmless(way):
    async with way.open(functions.after_loop) as stream:
        await stream.end()
        await stream.end()
        assert await drain(stream) == ["done"]
        await stream.end()


async def test_recv_waits_for_a_result_that_comes_after_end(way):
    async with way.open(functions.after_loop) as stream:
        receiving = asyncio.create_task(stream.recv())
        assert await blocked(receiving)
        await stream.end()
        assert await asyncio.wait_for(receiving, HANG) == "done"


async def test_yield_before_the_first_event(way):
    async with way.open(functions.greets) as stream:
        assert await stream.recv() == "hello"
        await stream.send(1)
        assert await stream.recv() == 1


async def test_function_that_never_reads(way):
    assert await way.run(functions.counts_without_reading, range(3)) == [*range(5)]
    assert await way.run(functions.counts_without_reading, range(3000)) == [*range(5)]
    assert await way.run(functions.counts_without_reading, []) == [*range(5)]


async def test_early_return_gives_its_results_first(way):
    async with way.open(functions.first_two) as stream:
        await stream.send_batch(range(10))
        assert await stream.recv() == 0
        assert await stream.recv() == 1
        with pytest.raises(StreamClosed):
            await stream.recv()
        with pytest.raises(StreamClosed, match="returned"):
            await stream.send(11)


async def test_send_to_a_function_that_has_returned_says_closed(way):
    """Also when nobody receives: what is sent would be lost without a word."""
    buffer = 100_000
    early = way.fn(functions.returns_at_once, buffer=buffer)
    async with early.open() as stream:
        accepted = 0

        async def send_on():
            nonlocal accepted
            while True:
                await stream.send(accepted)
                accepted += 1
                await asyncio.sleep(0.001)

        with pytest.raises(StreamClosed):
            await asyncio.wait_for(send_on(), HANG)
        assert accepted < buffer  # it was not for lack of room


async def test_waiting_send_learns_of_an_early_return(way):
    @stream_fn(buffer=2)
    async def returns_later(events):
        yield await anext(events)
        await asyncio.sleep(0.1)

    async with way.open(returns_later) as stream:
        with pytest.raises(StreamClosed):
            await asyncio.wait_for(stream.send_batch(range(100)), HANG)


async def test_early_return_without_results(way):
    assert await way.run(functions.returns_at_once, range(1000)) == []
    async with way.open(functions.returns_at_once) as stream:
        with pytest.raises(StreamClosed):
            await asyncio.wait_for(stream.recv(), HANG)


async def test_leaving_normally_runs_finally(way, tmp_path):
    path = str(tmp_path / "marks")
    async with way.open(functions.marks_finally) as stream:
        await stream.send_batch([path, 1, 2])
        assert await stream.recv() == "ready"
    assert marks(path) == "(f)"
    assert stream.closed


async def test_leaving_normally_finishes_the_events(way, tmp_path):
    """Closing is not cancelling: what was sent is worked on."""
    path = str(tmp_path / "marks")

    @stream_fn
    async def works(events):
        async for event in events:
            await asyncio.sleep(0.001)
            functions.mark(path, event)
        yield "done"

    async with way.open(works) as stream:
        await stream.send_batch("abcdefgh")
    assert marks(path) == "abcdefgh"


async def test_leaving_by_exception_runs_finally(way, tmp_path):
    path = str(tmp_path / "marks")
    with pytest.raises(ZeroDivisionError):
        async with way.open(functions.marks_finally) as stream:
            await stream.send(path)
            await stream.recv()
            _ = 1 / 0
    assert marks(path) == "(f)"
    with pytest.raises(StreamClosed):
        await stream.send(1)


async def test_leaving_by_cancellation_runs_finally(way, tmp_path):
    path = str(tmp_path / "marks")

    async def use():
        async with way.open(functions.marks_finally) as stream:
            await stream.send(path)
            await stream.recv()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await until(lambda: marks(path) == "(")
    await blocked(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert marks(path) == "(f)"


async def test_cancelling_the_close_still_closes(way, tmp_path):
    path = str(tmp_path / "marks")

    @stream_fn
    async def long(events):
        await anext(events)
        try:
            await asyncio.sleep(3600)
            yield
        finally:
            functions.mark(path, "f")

    stream = await way.open(long)
    await stream.send(0)
    closing = asyncio.create_task(stream.aclose())
    assert await blocked(closing)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(closing, HANG)
    assert marks(path) == "f"


async def test_aclose_twice_is_harmless(way):
    stream = await way.open(functions.echo)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StreamClosed, match="closed"):
        await stream.send(1)
    with pytest.raises(StreamClosed):
        await stream.recv()


async def test_aclose_drops_results(way):
    async with way.open(functions.echo, buffer=8) as stream:
        await stream.send_batch(range(8))
    with pytest.raises(StreamClosed):
        await stream.recv()


async def test_aclose_of_a_function_that_has_more_results_than_room(way):
    stream = await way.open(functions.repeat, buffer=4)
    await stream.send(1000)
    await asyncio.wait_for(stream.aclose(), HANG)


async def test_aclose_of_an_endless_function(way):
    stream = await way.open(functions.endless)
    assert await stream.recv() == 0
    await asyncio.wait_for(stream.aclose(), HANG)


async def test_aclose_cancels_after_close_timeout(way):
    stream = await way.open(functions.stubborn, close_timeout=0.1)
    assert await stream.recv() == "ready"
    await asyncio.wait_for(stream.aclose(), HANG)


async def test_close_timeout_of_zero_cancels_at_once(way):
    stream = await way.open(functions.never_reads, close_timeout=0)
    assert await stream.recv() == "ready"
    await asyncio.wait_for(stream.aclose(), HANG)
    assert stream.closed


async def test_aclose_raises_what_nobody_received(way):
    stream = await way.open(functions.fails)
    await stream.send("own")
    with pytest.raises(functions.OwnError):
        await stream.aclose()


async def test_an_error_is_raised_once(way):
    async with way.open(functions.fails) as stream:
        await stream.send("own")
        with pytest.raises(functions.OwnError):
            await stream.recv()
        with pytest.raises(StreamClosed, match="OwnError"):
            await stream.recv()


async def test_a_receiver_that_waits_while_another_task_closes(way):
    """The usual shape: one task iterates, another one leaves the block."""
    seen = []

    async def receive(stream):
        async for result in stream:
            seen.append(result)

    async with way.open(functions.echo) as stream:
        receiving = asyncio.create_task(receive(stream))
        await stream.send(1)
        await until(lambda: seen == [1])
        assert await blocked(receiving, 5)
    await asyncio.wait_for(receiving, HANG)


async def test_a_sender_that_waits_while_another_task_closes(way):
    stream = await way.open(functions.never_reads, buffer=2, close_timeout=0.1)
    sending = asyncio.create_task(stream.send_batch(range(5)))
    assert await blocked(sending)
    await asyncio.wait_for(stream.aclose(), HANG)
    with pytest.raises(StreamClosed):
        await asyncio.wait_for(sending, HANG)


async def test_break_out_of_iteration_keeps_the_rest(way):
    async with way.open(functions.echo) as stream:
        await stream.send_batch(range(20))
        async for result in stream:
            if result == 4:
                break
        await stream.end()
        assert await drain(stream) == list(range(5, 20))


async def test_stream_says_who_it_is(way):
    async with way.open(functions.echo) as stream:
        assert "echo" in repr(stream)
        assert "open" in repr(stream)
        assert not stream.closed
    assert "open" not in repr(stream)


async def test_calling_the_function_itself(way):
    async def source():
        for event in (1, 2, 3):
            yield event

    summing = way.fn(functions.running_sum)
    assert [result async for result in summing(source())] == [1, 3, 6]


async def test_open_can_be_awaited(way):
    stream = await way.open(functions.echo)
    await stream.send(1)
    assert await stream.recv() == 1
    async with stream:
        await stream.send(2)
        assert await stream.recv() == 2
    with pytest.raises(StreamClosed):
        await stream.send(3)


async def test_cancelled_function_task_frees_a_waiting_receiver(way):
    """A stream that is cancelled under a receiver tells it so."""
    stream = await way.open(functions.never_reads)
    assert await stream.recv() == "ready"
    receiving = asyncio.create_task(stream.recv())
    assert await blocked(receiving)
    stream._cancel()
    with pytest.raises(StreamClosed, match="cancelled"):
        await asyncio.wait_for(receiving, HANG)
    await stream.__aexit__(ValueError, ValueError(), None)


async def test_a_function_that_awaits_while_it_is_closed_fails_nobody(way, tmp_path):
    """It stands at a `yield` for which there is no room, and its `finally` takes its time."""
    path = str(tmp_path / "marks")

    @stream_fn(buffer=1)
    async def goes_on(events):
        try:
            async for event in events:
                while True:
                    yield event
        finally:
            await asyncio.sleep(0.01)
            functions.mark(path)

    for count in range(1, 4):
        with pytest.raises(LookupError, match="the user's own"):
            async with way.open(goes_on) as stream:
                await stream.send(1)
                assert await stream.recv() == 1
                await asyncio.sleep(0.01)
                raise LookupError("the user's own")
        assert len(functions.marks(path)) == count
