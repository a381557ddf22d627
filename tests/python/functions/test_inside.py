"""What a function may do while it runs: deadlines, tasks, and how it meets its cancellation."""

import asyncio
import contextlib

import pytest

import functions
from functions import marks
from helpers import HANG, until
from velo import stream_fn


async def test_events_with_a_deadline_inside_the_function(way):
    """`anext(events)` may be cancelled: the next one gets the event."""

    @stream_fn
    async def windows(events):
        window = []
        while True:
            try:
                async with asyncio.timeout(0.02):
                    window.append(await anext(events))
            except TimeoutError:
                if window:
                    yield window
                    window = []
            except StopAsyncIteration:
                return

    got = []
    async with way.open(windows) as stream:
        for number in range(30):
            await stream.send(number)
            while number % 5 == 4 and len(got) <= number:
                got.extend(await stream.recv())
    assert got == list(range(30))


async def test_tasks_and_task_groups_inside_the_function(way):
    @stream_fn
    async def fans_out(events):
        async for event in events:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asyncio.sleep(0.001, event * n)) for n in range(3)]
            yield [task.result() for task in tasks]

    assert await way.run(fans_out, [1, 2]) == [[0, 1, 2], [0, 2, 4]]


async def test_two_tasks_may_not_wait_for_the_next_event(way):
    @stream_fn
    async def greedy(events):
        async def take():
            return await anext(events)

        one, two = asyncio.create_task(take()), asyncio.create_task(take())
        done, _ = await asyncio.wait([one, two], return_when=asyncio.FIRST_COMPLETED)
        yield [type(task.exception()).__name__ for task in done]
        for task in (one, two):
            task.cancel()
        await asyncio.wait([one, two])

    async with way.open(greedy) as stream:
        assert await asyncio.wait_for(stream.recv(), HANG) == ["StreamBusy"]


async def test_function_that_swallows_cancellation_is_closed(way):
    @stream_fn
    async def clings(events):
        yield "ready"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        yield "still here"
        yield "and here"

    with pytest.raises(ZeroDivisionError):
        async with way.open(clings) as stream:
            await stream.recv()
            _ = 1 / 0


async def test_cancelled_function_sees_no_more_events(way, tmp_path):
    """What is queued at a cancellation is not worked on, whatever the function does."""
    path = str(tmp_path / "marks")

    @stream_fn
    async def clings(events):
        yield "ready"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        async for _ in events:
            functions.mark(path)
        functions.mark(path, "end")

    with pytest.raises(ZeroDivisionError):
        async with way.open(clings) as stream:
            await stream.send_batch(range(5))
            await stream.recv()
            _ = 1 / 0
    await until(lambda: "end" in marks(path))
    assert marks(path) == "end"


async def test_the_function_runs_as_one_task_in_one_context(way):
    """However it is woken: from a sleep, by a spin, or from a wait of its own."""

    @stream_fn
    async def fn(events):
        task = asyncio.current_task()
        functions.tenant.set(0)
        async for pause in events:
            same = asyncio.current_task() is task
            functions.tenant.set(functions.tenant.get() + 1)
            yield same, functions.tenant.get()
            if pause:
                await asyncio.sleep(pause)
                yield asyncio.current_task() is task, functions.tenant.get()

    async with way.open(fn) as stream:
        for number, pause in enumerate([0, 0.01, 0, 0, 0.01, 0], 1):
            await asyncio.sleep(0.005 * (number % 2))  # asleep, and not
            await stream.send(pause)
            assert await stream.recv() == (True, number)
            if pause:
                assert await stream.recv() == (True, number)


async def test_another_task_of_the_function_has_its_turns(way):
    """What the function does for its events does not keep the loop from the rest."""

    @stream_fn
    async def fn(events):
        ticks = 0

        async def count():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        task = asyncio.create_task(count())
        try:
            async for _ in events:
                yield ticks
        finally:
            task.cancel()

    async with way.open(fn) as stream:
        before = 0
        for _ in range(5):
            ticks = before
            while ticks == before:  # a worker that is still loading the function answers at once
                await asyncio.sleep(0.002)
                await stream.send(1)
                ticks = await stream.recv()
            assert ticks > before
            before = ticks


async def test_a_wait_for_an_event_that_another_task_takes_over(way):
    """Now the function waits itself, now a task that it made."""

    @stream_fn
    async def fn(events):
        while True:
            try:
                yield "own", await anext(events)
                yield "task", await asyncio.create_task(_next(events))
                async with asyncio.timeout(HANG):
                    yield "timed", await anext(events)
            except StopAsyncIteration:
                return

    async with way.open(fn) as stream:
        for number in range(9):
            await asyncio.sleep(0.002)
            await stream.send(number)
            assert await stream.recv() == (("own", "task", "timed")[number % 3], number)


async def _next(events):
    return await anext(events)
