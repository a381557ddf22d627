"""What a function raises reaches the caller as its own type, and what cannot travel says so."""

import asyncio
import os

import pytest

import functions
from functions import OwnError
from helpers import HANG, notes
from velo import stream_fn
from velo.errors import RemoteError, StreamClosed, VeloError

pytestmark = pytest.mark.every_backend


async def raised(mode, word):
    """What `fails` raises at the caller."""
    async with functions.fails.options(mode=mode).open() as stream:
        await stream.send(word)
        # No task in between: a KeyboardInterrupt would tear through its event loop.
        with pytest.raises(BaseException) as info:
            async with asyncio.timeout(HANG):
                await stream.recv()
    return info.value


async def test_own_type_attributes_and_notes(mode):
    error = await raised(mode, "own")
    assert type(error) is OwnError
    assert (error.args, error.code, error.extra) == (("broken", 7), 7, {"more": 1})
    assert error.__notes__[0] == "a note of its own"


async def test_required_constructor_arguments(mode):
    error = await raised(mode, "required")
    assert type(error) is functions.RequiredError
    assert (str(error), error.what, error.where) == ("gone at here", "gone", "here")


async def test_exception_group(mode):
    error = await raised(mode, "group")
    assert type(error) is ExceptionGroup
    assert error.message == "several"
    first, second = error.exceptions
    assert (type(first), first.args) == (ValueError, ("a",))
    assert (type(second), second.code) == (OwnError, 3)


async def test_nested_exception_group(mode):
    error = await raised(mode, "nested group")
    inner, other = error.exceptions
    assert type(inner.exceptions[0]) is KeyError
    assert (type(other), other.errno, other.filename) == (FileNotFoundError, 2, "name")


async def test_unpicklable_becomes_a_remote_error():
    error = await raised("process", "unpicklable")
    assert type(error) is RemoteError
    assert error.type_name == "functions.Unpicklable"
    assert error.message == "holds a lock"
    assert "raise Unpicklable" in error.traceback
    assert str(error) == "functions.Unpicklable: holds a lock"


async def test_unpicklable_stays_itself_inline():
    assert type(await raised("inline", "unpicklable")) is functions.Unpicklable


async def test_traceback_of_the_worker_is_readable():
    error = await raised("process", "own")
    assert "in the worker" in notes(error)
    assert "functions.py" in notes(error)
    assert "raise error" in notes(error)


async def test_traceback_of_code_that_travels_by_value_names_its_file():
    """A worker can import neither a script nor what is inside a function."""

    @stream_fn(mode="process")
    async def local(events):
        async for event in events:
            yield 1 / event  # here it fails

    async with local.open() as stream:
        await stream.send(0)
        with pytest.raises(ZeroDivisionError) as info:
            await stream.recv()
    assert f'File "{__file__}", line' in notes(info.value)
    assert "yield 1 / event  # here it fails" in notes(info.value)


async def test_traceback_inline_shows_the_function():
    error = await raised("inline", "own")
    files = []
    step = error.__traceback__
    while step:
        files.append(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    assert any(name.endswith("functions.py") for name in files)


async def test_cause_is_kept_or_told(mode):
    error = await raised(mode, "cause")
    assert type(error) is ValueError
    assert isinstance(error.__cause__, KeyError) or "KeyError: 'nothing'" in notes(error)


@pytest.mark.parametrize(("word", "kind"), [("interrupt", KeyboardInterrupt), ("exit", SystemExit)])
async def test_leaving_words_reach_the_caller(mode, word, kind):
    """They neither end the worker nor the caller's event loop."""
    error = await raised(mode, word)
    assert type(error) is kind
    if kind is SystemExit:
        assert error.code == 3
    assert await functions.echo.options(mode=mode).run([1]) == [1]


async def test_generator_exit(mode):
    error = await raised(mode, "generator exit")
    assert type(error) is GeneratorExit


@pytest.mark.parametrize("word", ["stop", "stop async"])
async def test_stop_iteration_becomes_a_runtime_error(mode, word):
    """As Python does it for every generator."""
    error = await raised(mode, word)
    assert type(error) is RuntimeError
    assert "Stop" in str(error)


async def test_a_cancellation_of_its_own_closes_the_stream(mode):
    error = await raised(mode, "cancelled")
    assert type(error) is StreamClosed
    assert "cancelled" in str(error)


async def test_timeout_error(mode):
    error = await raised(mode, "timeout")
    assert (type(error), error.args) == (TimeoutError, ("too late",))


async def test_timeout_error_at_close_is_the_functions_own(mode):
    with pytest.raises(TimeoutError, match="too late"):
        async with functions.fails.options(mode=mode).open() as stream:
            await stream.send("timeout")


async def test_os_error(mode):
    error = await raised(mode, "os")
    assert type(error) is FileNotFoundError
    assert (error.errno, error.strerror, error.filename) == (2, "no such file", "some/name")


async def test_unicode_error(mode):
    error = await raised(mode, "unicode")
    assert type(error) is UnicodeDecodeError
    assert (error.object, error.start, error.encoding) == (b"\xff", 0, "utf-8")


async def test_exception_without_words(mode):
    error = await raised(mode, "bad str")
    assert type(error) in (functions.BadStr, RemoteError)
    if mode == "inline":
        assert type(error) is functions.BadStr


async def test_results_before_the_error_come_first(mode):
    async with functions.fails.options(mode=mode).open() as stream:
        await stream.send_batch([1, 2, "own", 3])
        await stream.end()
        results = []
        with pytest.raises(OwnError):
            async for result in stream:
                results.append(result)
        assert results == [1, 2]


async def test_results_before_the_error_come_first_in_batches(mode):
    async with functions.fails.options(mode=mode).open() as stream:
        await stream.send_batch([1, 2, "own", 3])
        got = []
        with pytest.raises(OwnError):
            while True:
                got.extend(await stream.recv_batch())
        assert got == [1, 2]
        with pytest.raises(StreamClosed):
            await stream.recv_batch()


async def test_send_after_a_failure_says_so(mode):
    async with functions.fails.options(mode=mode).open() as stream:
        await stream.send("own")
        with pytest.raises(OwnError):
            await stream.recv()
        with pytest.raises(StreamClosed, match="failed"):
            await stream.send(1)


async def test_run_raises(mode):
    with pytest.raises(OwnError):
        await functions.fails.options(mode=mode).run([1, "own", 2])


async def test_error_in_finally(mode):
    @stream_fn(mode=mode)
    async def trips(events):
        try:
            async for event in events:
                yield event
        finally:
            raise LookupError("in finally")

    with pytest.raises(LookupError, match="in finally"):
        await trips.run([1])


async def test_error_before_the_first_event(mode):
    @stream_fn(mode=mode)
    async def stillborn(events):
        raise LookupError("at once")
        yield

    with pytest.raises(LookupError, match="at once"):
        await stillborn.run([])
    with pytest.raises(LookupError, match="at once"):
        async with stillborn.open() as stream:
            await stream.recv()


def test_wrong_signature_is_told_at_decoration(mode):
    with pytest.raises(TypeError, match="more"):

        @stream_fn(mode=mode)
        async def too_many(events, more):
            yield


async def test_what_is_no_iterator_is_told_the_same_way(mode):
    @stream_fn(mode=mode)
    def number(events) -> int:
        return 5

    stream = await number.open()
    with pytest.raises(TypeError):
        await stream.recv()
    await stream.aclose()


async def test_velo_errors_have_one_base():
    from velo import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), VeloError | Warning)


async def test_velo_errors_travel(mode):
    """A function may raise them too, and they may be logged by other processes."""
    from velo.errors import EventTooLarge, WorkerDied

    died = WorkerDied("name", 12, 9, None, 3, False, "other", 7, "a stack", "for stalling")

    @stream_fn(mode=mode)
    async def raises(events):
        async for event in events:
            raise event
            yield

    for error in (died, RemoteError("a.B", "words", "trace"), EventTooLarge("large")):
        with pytest.raises(type(error)) as info:
            await raises.run([error])
        assert str(info.value) == str(error)
    assert (died.pid, died.signal, died.in_flight) == (12, 9, 3)
    assert "SIGKILL" in str(died)


async def test_large_error_arrives():
    """An error may be larger than a ring is at first."""

    @stream_fn(mode="process")
    async def verbose(events):
        async for event in events:
            raise ValueError("x" * event)
            yield

    for size in (10, 10_000, 3_000_000):
        with pytest.raises(ValueError) as info:
            await asyncio.wait_for(verbose.run([size]), HANG)
        assert len(str(info.value)) == size


async def test_error_larger_than_max_bytes_is_still_an_error():
    @stream_fn(mode="process", max_bytes=65536)
    async def verbose(events):
        async for event in events:
            raise ValueError("x" * event)
            yield

    with pytest.raises((ValueError, VeloError)):
        await asyncio.wait_for(verbose.run([3_000_000]), HANG)


async def test_error_while_results_fill_the_buffer(mode):
    @stream_fn(mode=mode, buffer=4)
    async def fills(events):
        for number in range(4):
            yield number
        raise LookupError("after")

    async with fills.open() as stream:
        await asyncio.sleep(0)
        got = []
        with pytest.raises(LookupError):
            async for result in stream:
                got.append(result)
        assert got == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("raised", "seen", "words"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (SystemExit(3), SystemExit, "3"),
        (MemoryError("no more"), MemoryError, "no more"),
        (RecursionError("too deep"), RecursionError, "too deep"),
        (StopIteration(1), RuntimeError, "StopIteration"),
        (StopAsyncIteration(), RuntimeError, "StopAsyncIteration"),
        (asyncio.CancelledError(), StreamClosed, "cancelled"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_exceptions_that_mean_something_elsewhere(mode, raised, seen, words):
    """They reach the caller; the worker, and the loop, go on."""

    @stream_fn(mode=mode, workers=1)
    async def raises(events):
        async for event in events:
            if event == "raise":
                raise raised
            yield os.getpid()

    async with raises.open() as witness:
        await witness.send(1)
        pid = await witness.recv()
        with pytest.raises(seen, match=words):
            async with raises.open() as stream:
                await stream.send("raise")
                await stream.recv()
        await witness.send(2)
        assert await witness.recv() == pid


class UnreadableError(Exception):
    def __str__(self):
        raise ValueError("no words")


class ExplodesOnArrivalError(Exception):
    def __reduce__(self):
        return (_explode, ())


def _explode():
    raise ValueError("exploded")


@pytest.mark.parametrize("error", [UnreadableError, ExplodesOnArrivalError])
async def test_exceptions_that_cannot_be_shown_or_rebuilt(mode, error):
    """Nothing hangs, and what arrives names them."""
    kind = error.__name__

    @stream_fn(mode=mode)
    async def raises(events):
        async for _ in events:
            raise error
        yield

    with pytest.raises(Exception) as caught:
        await raises.run([1])
    assert kind in repr(caught.value) + str(getattr(caught.value, "type_name", ""))
