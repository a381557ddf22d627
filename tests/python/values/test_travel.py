"""What cannot travel to a worker, or back, says so and where; the stream goes on."""

import os
import socket
import sys
import threading
import types

import pytest

import functions
from helpers import notes, run_script
from velo import stream_fn


class NoTravel:
    """Cannot be pickled."""

    def __init__(self):
        self.socket = socket.socket()

    def __del__(self):
        self.socket.close()


async def test_event_that_cannot_travel_says_where():
    async with functions.echo.options(mode="process").open() as stream:
        with pytest.raises(Exception, match=r'event\["user"\]\.socket') as info:
            await stream.send({"id": 1, "user": NoTravel()})
        assert isinstance(info.value, TypeError)
        await stream.send("good")
        assert await stream.recv() == "good"
        with pytest.raises(TypeError, match=r"event\[1\]"):
            await stream.send_batch([1, [2, threading.Lock()], 3])
        await stream.send(4)
        assert [await stream.recv(), await stream.recv()] == [1, 4]


async def test_event_that_cannot_travel_in_feed():
    async with functions.echo.options(mode="process").open() as stream:
        results = []
        with pytest.raises(TypeError, match="event"):
            async for result in stream.feed([1, 2, threading.Lock(), 3]):
                results.append(result)
        await stream.send(4)
        await stream.end()
        results.extend([result async for result in stream])
        assert results == [1, 2, 4]


async def test_event_that_travels_anywhere_inline():
    value = NoTravel()
    assert await functions.echo.options(mode="inline").run([value]) == [value]


async def test_result_that_cannot_travel_fails_at_its_yield(tmp_path):
    @stream_fn(mode="process")
    async def makes(events):
        async for event in events:
            try:
                yield {"made": [1, threading.Lock()]}
            except TypeError as error:
                yield str(error)

    async with makes.open() as stream:
        await stream.send(1)
        text = await stream.recv()
        assert '["made"][1]' in text
        await stream.send(2)
        assert '["made"][1]' in await stream.recv()


async def test_uncaught_result_that_cannot_travel_reaches_the_caller():
    @stream_fn(mode="process")
    async def makes(events):
        async for event in events:
            yield event
            yield threading.Lock()

    async with makes.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        with pytest.raises(TypeError, match="result"):
            await stream.recv()


class Explodes:
    """Travels, but cannot be made again."""

    def __reduce__(self):
        return (explode, ("on arrival",))


def explode(words):
    raise LookupError(words)


async def test_event_that_explodes_on_arrival():
    """It fails where the function takes it, and the function may go on."""

    @stream_fn(mode="process")
    async def careful(events):
        while True:
            try:
                yield await anext(events)
            except LookupError as error:
                yield str(error)
            except StopAsyncIteration:
                return

    assert await careful.run([1, Explodes(), 2]) == [1, "on arrival", 2]


async def test_result_that_explodes_on_arrival_is_raised_once():
    @stream_fn(mode="process")
    async def makes(events):
        async for event in events:
            yield Explodes() if event == 2 else event

    with pytest.raises(LookupError, match="on arrival"):
        await makes.run([1, 2, 3])


async def test_import_error_in_the_worker():
    """A module that only the client has."""
    module = types.ModuleType("only_in_the_client")
    exec(
        "async def ghost(events):\n    async for event in events:\n        yield event\n",
        module.__dict__,
    )
    sys.modules["only_in_the_client"] = module
    try:
        ghost = stream_fn(mode="process")(module.ghost)
        with pytest.raises(ImportError, match="only_in_the_client") as info:
            await ghost.run([1])
        assert "in the worker" in notes(info.value)
        with pytest.raises(ImportError):
            await ghost.run([1])
    finally:
        del sys.modules["only_in_the_client"]
    assert await functions.echo.options(mode="process").run([1]) == [1]


async def test_module_that_fails_at_import_in_the_worker(tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text(
        "import os\n"
        "if os.getpid() != int(os.environ['PICKY_PID']):\n"
        "    raise RuntimeError('not in this process')\n"
        "async def echo(events):\n"
        "    async for event in events:\n"
        "        yield event\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    monkeypatch.setenv("PICKY_PID", str(os.getpid()))
    import picky

    failing = stream_fn(mode="process")(picky.echo)
    with pytest.raises((RuntimeError, KeyError)) as info:
        await failing.run([1])
    assert "picky.py" in notes(info.value)


async def test_function_that_cannot_be_sent_says_so():
    lock = threading.Lock()

    @stream_fn(mode="process")
    async def holds(events):
        async for event in events:
            yield lock, event

    with pytest.raises(TypeError, match=r"`.*holds` cannot be sent to a worker"):
        await holds.run([1])


async def test_the_variable_that_cannot_travel_is_named():
    lock = threading.Lock()

    def helper():
        return lock

    @stream_fn(mode="process")
    async def uses(events):
        async for _ in events:
            with lock:
                yield

    @stream_fn(mode="process")
    async def calls(events):
        async for _ in events:
            yield helper()

    with pytest.raises(TypeError, match="its variable `lock` cannot be pickled"):
        await uses.open()
    with pytest.raises(TypeError, match="its variable `lock` of `helper` cannot be pickled"):
        await calls.open()


def test_python_that_refuses_to_compare_bytes_with_text(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        from velo import stream_fn

        @stream_fn(mode="process")
        async def echo(events):
            async for event in events:
                yield event

        print(echo.run_sync([1, b"2"]))
        """,
        flags=["-bb"],
    )
    assert (code, output) == (0, "[1, b'2']\n"), errors
