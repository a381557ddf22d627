"""Streams whose worker dies before it opens them, and those that are closed after its death."""

import asyncio
import contextlib
import logging
import os
import signal
import sys

import numpy as np
import pytest

import functions
from helpers import HANG, drain, pid_of, until
from recovering import fresh_pool  # noqa: F401
from velo import stream_fn
from velo.errors import StreamClosed, WorkerDied

pytestmark = pytest.mark.every_backend

echo = functions.echo.options(mode="process", workers=1, buffer=16)
pids = functions.pids.options(mode="process", workers=1)


@contextlib.asynccontextmanager
async def stopped_worker():
    """A worker that stands still, so that it opens no stream; and what kills it."""
    stream = await pids.open()
    pid = await pid_of(stream)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(WorkerDied):
            await stream.aclose()


async def test_a_stream_that_is_opened_right_after_the_death():
    for _ in range(3):
        async with pids.open() as stream:
            dead = await pid_of(stream)
            os.kill(dead, signal.SIGKILL)
            async with pids.open() as other:  # the death is not known yet
                assert await asyncio.wait_for(pid_of(other), HANG) != dead


async def test_what_was_sent_goes_along(caplog):
    caplog.set_level(logging.INFO, logger="velo.streams")
    large = np.arange(100_000)  # the ring grows for it
    async with stopped_worker() as kill, echo.open() as stream:
        await stream.send_batch([*range(5), large])
        received = asyncio.create_task(stream.recv_batch(1))
        await asyncio.sleep(0)
        kill()
        assert await asyncio.wait_for(received, HANG) == [0]
        await stream.send(6)
        await stream.end()
        results = await drain(stream)
        assert results[:4] == [1, 2, 3, 4]
        np.testing.assert_array_equal(results[4], large)
        assert results[5:] == [6]
        assert (stream.metrics.events, stream.metrics.results) == (7, 7)
    assert f"stream `{stream.name}` goes on in worker process" in caplog.text


async def test_what_is_sent_while_it_has_no_worker_and_how_it_ends():
    async with stopped_worker() as kill, echo.open() as stream:
        await stream.send_batch(range(16))  # its buffer is full
        more = asyncio.create_task(stream.send_batch(range(16, 40)))
        await asyncio.sleep(0)
        kill()
        results = [await asyncio.wait_for(stream.recv(), HANG) for _ in range(40)]
        assert results == list(range(40))
        await more


async def test_the_newest_events_stay_the_newest():
    async with (
        stopped_worker() as kill,
        echo.options(full="drop_oldest", buffer=4).open() as stream,
    ):
        await stream.send_batch(range(20))
        kill()
        await stream.end()
        assert await asyncio.wait_for(drain(stream), HANG) == [16, 17, 18, 19]
        assert stream.metrics.dropped == 16


async def test_run_and_keyed():
    async with stopped_worker() as kill:

        async def by_key():
            return sorted([pair async for pair in echo.keyed(range(6), key=lambda x: x % 2)])

        run = asyncio.create_task(echo.run(range(100)))
        keyed = asyncio.create_task(by_key())
        await until(lambda: streams_open() == 3)
        kill()
        assert await asyncio.wait_for(run, HANG) == list(range(100))
        assert await asyncio.wait_for(keyed, HANG) == sorted((x % 2, x) for x in range(6))


def streams_open():
    from velo._process.clients import client_of

    links = client_of(asyncio.get_running_loop()).links.values()
    return sum(link.end.streams for link in links)


async def test_closing_and_cancelling_while_it_has_no_worker():
    async with stopped_worker() as kill:
        closed, cancelled, dropped = [await echo.open() for _ in range(3)]
        for stream in (closed, cancelled, dropped):
            await stream.send(1)
        kill()
        closing = asyncio.create_task(closed.aclose())
        with pytest.raises(ZeroDivisionError):
            async with cancelled:
                raise ZeroDivisionError
        with pytest.warns(ResourceWarning):
            del stream, dropped
        await asyncio.wait_for(closing, HANG)
        await until(lambda: streams_open() == 0)
        assert closed.metrics.queued == 0
        with pytest.raises(StreamClosed):
            await cancelled.recv()


async def test_an_array_on_loan_cannot_go_along():
    async with stopped_worker() as kill, echo.open() as stream:
        loan = await stream.loan((100_000,), "uint8")
        loan[:] = 7
        await stream.send(loan)
        kill()
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(stream.recv(), HANG)
        assert info.value.in_flight == 1
        assert "on loan" in str(info.value.__cause__)


async def test_a_function_that_ends_its_worker_before_its_first_event(tmp_path):
    """That function was opened, and is not tried again."""
    marks = tmp_path / "marks"

    @stream_fn(mode="process", workers=1)
    async def falls(events):
        with open(marks, "a") as file:
            file.write("x")
        os._exit(3)
        yield

    async with falls.open() as stream:
        await stream.send(1)
        with pytest.raises(WorkerDied, match="code 3"):
            await asyncio.wait_for(stream.recv(), HANG)
    assert marks.read_text() == "x"


async def test_a_module_that_ends_its_worker_when_it_is_imported(tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    (tmp_path / "falls_when_imported.py").write_text(
        "import os\n"
        "from velo import stream_fn\n"
        "if 'VELO_WORKER' in os.environ:\n"
        f"    open({str(marks)!r}, 'a').write('x')\n"
        "    os._exit(4)\n"
        "@stream_fn(mode='process', workers=1)\n"
        "async def falls(events):\n"
        "    yield\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "falls_when_imported", raising=False)
    import falls_when_imported

    with pytest.raises(WorkerDied, match="code 4"):
        await asyncio.wait_for(falls_when_imported.falls.run([1]), HANG)
    assert marks.read_text() == "x"


async def test_closing_after_the_death_of_an_idle_worker_is_quiet(caplog):
    """No event is lost, so the death is only logged."""
    async with pids.open() as stream:
        pid = await pid_of(stream)
        await until(lambda: stream.metrics.queued == 0)
        os.kill(pid, signal.SIGKILL)
    assert f"`{stream.name}` is closed, but its worker process {pid} had died" in caplog.text


async def test_closing_with_events_in_flight_says_so():
    stream = await functions.never_reads.options(mode="process", workers=1).open()
    assert await stream.recv() == "ready"
    await stream.send_batch(range(3))
    from velo._process.clients import client_of

    (pid,) = {link.pid for link in client_of(asyncio.get_running_loop()).links.values()}
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="3 events in flight"):
        await stream.aclose()


async def test_closing_after_a_function_has_ended_its_worker_says_so():
    @stream_fn(mode="process", workers=1)
    async def falls(events):
        async for _ in events:
            yield
        os._exit(5)

    with pytest.raises(WorkerDied, match="code 5"):
        async with falls.open() as stream:
            await stream.send(1)
            await stream.recv()
