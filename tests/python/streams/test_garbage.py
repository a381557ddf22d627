"""Streams that nobody closed, and what the garbage collector meets."""

import asyncio
import gc
import sys
import threading
import weakref

import pytest

import functions
from functions import marks
from helpers import HANG, run_script, until


async def test_a_stream_that_was_never_closed_warns(mode, tmp_path):
    path = str(tmp_path / "marks")
    stream = await functions.marks_finally.options(mode=mode).open()
    await stream.send(path)
    assert await stream.recv() == "ready"
    name = stream.name
    with pytest.warns(ResourceWarning, match=rf"stream `{name}` was never closed.*aclose"):
        del stream
        gc.collect()
    await until(lambda: marks(path) == "(f)")


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_its_place_comes_back_where_the_warning_is_an_error(mode, tmp_path, monkeypatch):
    path = str(tmp_path / "marks")
    limited = functions.marks_finally.options(mode=mode, max_concurrent=1, overflow="error")
    stream = await limited.open()
    await stream.send(path)
    assert await stream.recv() == "ready"
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: raised.append(failed.exc_type))
    del stream
    gc.collect()
    assert raised == [ResourceWarning]
    async with limited.open() as other:
        await other.send(str(tmp_path / "others"))
    await until(lambda: marks(path) == "(f)")


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_closed_stream_does_not_warn(mode):
    async with functions.echo.options(mode=mode).open():
        pass
    stream = await functions.echo.options(mode=mode).open()
    await stream.aclose()
    del stream
    gc.collect()


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_stream_that_is_over_does_not_warn(mode):
    stream = await functions.echo.options(mode=mode).open()
    await stream.end()
    assert [result async for result in stream] == []
    del stream
    gc.collect()


async def test_a_stream_is_freed_with_its_last_reference(mode):
    """No cycle keeps it until a collection."""
    gc.disable()
    try:
        async with functions.echo.options(mode=mode).open() as stream:
            await stream.send(1)
            await stream.recv()
            gone = weakref.ref(stream)
        del stream
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


async def test_events_are_freed_once_handled(mode):
    class Event:
        pass

    async with functions.echo.options(mode=mode).open() as stream:
        event = Event()
        gone = weakref.ref(event)
        await stream.send(event)
        del event
        result = await stream.recv()
        del result
        await stream.send("next")
        await stream.recv()
        gc.collect()
        assert gone() is None


async def test_stream_in_a_cycle(mode):
    class Holder:
        pass

    holder = Holder()
    holder.me = holder
    holder.stream = await functions.echo.options(mode=mode).open()
    await holder.stream.send(1)
    with pytest.warns(ResourceWarning):
        del holder
        gc.collect()
    assert await functions.echo.options(mode=mode).run([1]) == [1]


async def test_collected_by_another_thread(mode):
    """Whoever runs the collector, the stream ends and its place comes back."""
    limited = functions.echo.options(mode=mode, max_concurrent=1, overflow="error")
    held = [await limited.open()]
    await held[0].send(1)

    def drop():
        with pytest.warns(ResourceWarning):
            held.clear()
            gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join(HANG)
    async with asyncio.timeout(HANG), limited.open() as stream:
        await stream.send(2)
        assert await stream.recv() == 2


def test_a_stream_that_outlives_its_loop(mode):
    """Its loop is closed: nothing crashes, nothing hangs."""
    kept = []

    async def leave():
        stream = await functions.echo.options(mode=mode).open()
        await stream.send(1)
        kept.append(stream)

    asyncio.run(leave())
    with pytest.warns(ResourceWarning):
        kept.clear()
        gc.collect()
    assert functions.echo.options(mode=mode).run_sync([1]) == [1]


async def test_dropped_iteration_and_operations(mode):
    async with functions.echo.options(mode=mode).open() as stream:
        for _ in range(4):
            receiving = stream.recv()
            receiving.send(None)  # it waits
            del receiving
            gc.collect()
        await stream.send(1)
        assert await stream.recv() == 1


async def test_open_that_is_never_awaited(mode):
    limited = functions.echo.options(mode=mode, max_concurrent=1, overflow="error")
    for _ in range(3):
        limited.open()
    async with limited.open():
        pass


def test_warning_at_exit_is_no_crash(tmp_path, mode):
    script = f"""
        import asyncio
        from velo import stream_fn

        @stream_fn(mode={mode!r})
        async def echo(events):
            async for event in events:
                yield event

        async def main():
            global kept
            kept = await echo.open()
            await kept.send(1)
            async for _ in kept:
                break

        asyncio.run(main())
        print("fine")
    """
    code, output, errors = run_script(tmp_path, script, flags=["-X", "dev"])
    assert (code, output) == (0, "fine\n"), errors
    assert "Traceback" not in errors
    assert "panicked" not in errors
    assert "Fatal" not in errors
