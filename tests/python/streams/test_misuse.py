"""Mistakes that would do nothing, or something else, without a word: each says what to write."""

import asyncio
import bdb
import gc
import sqlite3
import threading
import warnings

import pytest

import functions
from helpers import drain, notes, run_script, until
from velo import stream_fn
from velo.errors import SlowStepWarning, StreamBusy


@stream_fn
async def plain_for(events):
    for event in events:
        yield event


@stream_fn
async def plain_for_over_ticks(events):
    for event in events.ticks(1.0):
        yield event


@pytest.mark.parametrize("fn", [plain_for, plain_for_over_ticks])
def test_a_plain_for_over_events(mode, fn):
    with pytest.raises(TypeError, match="use `async for`"):
        fn.options(mode=mode).run_sync([1, 2])


async def test_a_plain_for_over_results(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        with pytest.raises(TypeError, match="use `async for`"):
            list(stream.feed([1]))
        with pytest.raises(TypeError, match="use `async for`"):
            list(aiter(stream))


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("send", (1,)),
        ("send_batch", ([1],)),
        ("recv", ()),
        ("recv_batch", ()),
        ("end", ()),
    ],
)
async def test_an_operation_that_is_never_awaited_warns(mode, method, args):
    async with functions.echo.options(mode=mode).open() as stream:
        with pytest.warns(
            RuntimeWarning, match=rf"`{method}\(.*never awaited.*await stream\.{method}"
        ):
            getattr(stream, method)(*args)
            gc.collect()
        assert stream.metrics.events == 0


async def test_a_stream_that_is_never_opened_warns(mode):
    with pytest.warns(RuntimeWarning, match="never awaited.*async with"):
        functions.echo.options(mode=mode).open()
        gc.collect()


@pytest.mark.filterwarnings("ignore:.*never awaited:RuntimeWarning")
async def test_a_stream_that_is_used_without_being_opened(mode):
    stream = functions.echo.options(mode=mode).open()
    with pytest.raises(AttributeError, match=r"not a stream yet and has no `send`.*async with"):
        stream.send(1)
    assert not hasattr(stream, "_something")


def test_a_stream_that_is_not_opened_when_the_interpreter_ends(mode, tmp_path):
    script = """
        from velo import stream_fn

        @stream_fn(mode="MODE")
        async def echo(events):
            async for event in events:
                yield event

        stream = echo.open()
        stream.send(1)
    """
    code, _, errors = run_script(tmp_path, script.replace("MODE", mode))
    assert code == 1
    assert "write `async with fn.open() as stream`" in errors
    assert "shutting down" not in errors


async def test_operations_that_are_given_up_do_not_warn(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", SlowStepWarning)  # a busy machine makes any step slow
        async with functions.echo.options(mode=mode).open() as stream:
            task = asyncio.ensure_future(stream.recv())
            task.cancel()  # before its first step
            with pytest.raises(asyncio.CancelledError):
                await task
            stream.recv().close()
            await stream.send(1)
            assert await stream.recv() == 1
        gc.collect()


async def test_two_next_events_at_once(mode):
    @stream_fn(mode=mode)
    async def pairs(events):
        yield await asyncio.gather(anext(events), anext(events))
        async for event in events:
            yield event

    assert await pairs.run([1, 2, 3, 4]) == [[1, 2], 3, 4]


async def test_two_next_results_at_once(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        await stream.send_batch([1, 2])
        results = aiter(stream)
        first, second = anext(results), anext(results)
        assert first is not second
        assert [await first, await second] == [1, 2]


async def test_the_second_of_two_that_wait_is_refused(mode):
    @stream_fn(mode=mode)
    async def both(events):
        tasks = [asyncio.ensure_future(anext(events)) for _ in range(2)]
        (refused,), (waits,) = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(refused.exception(), StreamBusy)
        yield str(refused.exception())
        yield await waits
        async for event in events:
            yield event

    async with both.open() as stream:
        assert "two tasks wait for the next event" in await stream.recv()
        await stream.send("one")
        assert await stream.recv() == "one"
        await stream.send("two")
        assert await stream.recv() == "two"


async def test_the_same_next_event_twice(mode):
    @stream_fn(mode=mode)
    async def twice(events):
        lent = anext(events)
        other = anext(events)
        yield await lent, await other
        try:
            await other
        except RuntimeError as error:
            yield str(error)
        yield await anext(events)

    assert await twice.run([1, 2, 3]) == [
        (1, 2),
        "cannot await the same `anext(...)` twice: call `anext` again",
        3,
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"a": 1}, "would give its keys.*`.items\\(\\)`"),
        (5, "not `int`"),
        (lambda: [1], "call it"),
    ],
)
async def test_sources_that_give_something_else(mode, source, words):
    fn = functions.echo.options(mode=mode)
    with pytest.raises(TypeError, match=words):
        await fn.run(source)
    async with fn.open() as stream:
        with pytest.raises(TypeError, match=words):
            async for _ in stream.feed(source):
                pass
        with pytest.raises(TypeError, match=words):
            await stream.send_batch(source)
        await stream.send(1)
        assert await stream.recv() == 1


async def test_a_data_frame_as_source(mode):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1], "b": [2]})
    with pytest.raises(TypeError, match="would give its columns"):
        await functions.echo.options(mode=mode).run(frame)
    assert await functions.echo.options(mode=mode).run(frame.to_dict("records")) == [
        {"a": 1, "b": 2}
    ]


async def test_a_plain_source_that_waits_gives_its_results_as_they_come(way):
    """Also while the next event is not there, and the event loop goes on."""
    may_go_on = threading.Event()

    def sensor():
        yield 1
        may_go_on.wait()
        yield 2

    async with way.open(functions.echo) as stream:
        results = aiter(stream.feed(sensor()))
        assert await anext(results) == 1
        may_go_on.set()  # which an event loop that waits for the source could not do
        assert [r async for r in results] == [2]
        await stream.end()
        assert await drain(stream) == []


async def test_run_of_a_plain_source_that_waits(mode):
    turns = []
    may_go_on = threading.Event()

    def sensor():
        yield 1
        may_go_on.wait()
        yield 2

    async def other():
        turns.append(1)
        may_go_on.set()

    task = asyncio.create_task(functions.echo.options(mode=mode).run(sensor()))
    await other()
    assert await task == [1, 2]


@pytest.mark.parametrize("recover", ["none", "replay"])
async def test_keyed_of_a_plain_source_that_waits(mode, recover):
    may_go_on = threading.Event()

    def sensor():
        yield "a"
        may_go_on.wait()
        yield "b"

    results = functions.echo.options(mode=mode, recover=recover).keyed(sensor(), key=str)
    assert await anext(results) == ("a", "a")
    may_go_on.set()  # which an event loop that waits for the source could not do
    assert [r async for r in results] == [("b", "b")]


async def test_a_plain_source_that_fails_after_it_has_waited(mode):
    def sensor():
        yield 1
        raise LookupError("unplugged")

    got = []
    async with functions.echo.options(mode=mode).open() as stream:
        with pytest.raises(LookupError, match="unplugged"):
            async for result in stream.feed(sensor()):
                got.append(result)
    assert got in ([], [1])  # a failing source cancels the stream


async def test_a_cursor_stays_in_its_thread(mode):
    with sqlite3.connect(":memory:") as database:
        cursor = database.execute("select 1 union select 2")
        fn = functions.echo.options(mode=mode)
        assert await fn.run(cursor) == [(1,), (2,)]
        cursor = database.execute("select 3")
        assert await fn.run(row[0] for row in cursor) == [3]
        cursor = database.execute("select 4")
        assert [r async for r in fn.keyed(cursor, key=0)] == [(4, (4,))]
    database.close()


async def test_a_task_that_sends_and_never_receives_is_warned(mode):
    """It would wait for ever: the function waits for room for its results."""

    async def send_all(stream):
        for number in range(1000):
            await stream.send(number)

    async with functions.echo.options(mode=mode, buffer=4).open() as stream:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            sending = asyncio.create_task(send_all(stream))
            await until(lambda: any("waited for 5 s to send" in str(w.message) for w in seen))
        assert any("stream.feed(events)" in str(w.message) for w in seen)
        assert not sending.done()
        # It goes on once another task receives.
        got = [await stream.recv() for _ in range(1000)]
        await sending
        assert got == [*range(1000)]


async def test_a_source_that_is_left_early_is_closed(mode):
    closed = []

    async def source():
        try:
            for number in range(100_000):
                yield number
        finally:
            closed.append(number)

    async for _ in functions.echo.options(mode=mode).keyed(source(), key=lambda event: event % 3):
        break
    await until(lambda: closed)  # without a collection of garbage


@pytest.mark.parametrize("reads", ["breakpoint", "input"])
async def test_a_function_in_a_worker_that_asks_its_user(reads, monkeypatch):
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)

    @stream_fn(mode="process", workers=1)
    async def asks(events):
        async for _ in events:
            if reads == "breakpoint":
                import pdb

                pdb.set_trace()
            else:
                input()
            yield

    with pytest.raises((EOFError, bdb.BdbQuit)) as info:
        await asks.run([1])
    assert 'run the function with `fn.options(mode="inline")`' in notes(info.value)
