"""The names of velo-stream 0.x, for programs that come from there."""

import asyncio
import http.server
import io
import os
import signal
import sys
import threading

import pytest

import velo
from helpers import HANG
from velo import StreamMetrics, stream_fn
from velo.adapters import FileAdapter, GeneratorAdapter, HttpAdapter
from velo.errors import StreamClosed, VeloError
from velo.signals import GracefulShutdown


@stream_fn
async def double(numbers):
    async for number in numbers:
        yield 2 * number


async def test_a_stream_has_its_old_names(mode):
    async with double.options(mode=mode).open() as stream:
        assert stream.stream_id == stream.name
        await stream.send(1)
        assert await stream.recv() == 2
        await stream.close()
        await stream.close()
        assert stream.closed
        with pytest.raises(RuntimeError):
            await stream.send(2)
    metrics = stream.metrics
    assert (metrics.events_in, metrics.events_out) == (metrics.events, metrics.results) == (1, 1)
    assert metrics.latency_p50_us == metrics.latency_p50 > 0
    assert metrics.latency_p95_us == metrics.latency_p95
    assert metrics.latency_p99_us == metrics.latency_p99
    assert metrics.duration_ms == metrics.duration * 1000 > 0


def test_metrics_without_a_stream():
    metrics = StreamMetrics()
    assert (metrics.events_in, metrics.bytes_out, metrics.latency_p99_us) == (0, 0, 0.0)
    assert metrics.latency_p99 is None
    assert issubclass(StreamClosed, RuntimeError)
    assert issubclass(StreamClosed, VeloError)


def test_keyed_without_an_event_loop(mode):
    events = [("a", 1), ("b", 2), ("a", 3)]

    @stream_fn(mode=mode)
    async def totals(rows):
        total = 0
        async for _, number in rows:
            total += number
            yield total

    assert sorted(totals.keyed_sync(events, key=0)) == [("a", 1), ("a", 4), ("b", 2)]
    assert totals.keyed_sync([], key=0) == []
    with pytest.raises(IndexError):
        totals.keyed_sync(events, key=2)


async def test_keyed_sync_in_an_event_loop_says_what_to_use():
    with pytest.raises(VeloError, match=r"use `async for \.\.\. in double\.keyed\(\.\.\.\)` here"):
        double.keyed_sync([1], key=0)


def data(events):
    return [event.data for event in events]


async def collect(source):
    return [event async for event in source]


async def test_lines_and_bytes_of_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("one\r\n\nzwölf\n".encode("latin-1"))
    events = await collect(FileAdapter.stream_lines(path, encoding="latin-1"))
    assert data(events) == ["one", "zwölf"]
    assert events[0].metadata == {"file": str(path)}
    assert len({event.id for event in events}) == 2
    with pytest.raises(UnicodeDecodeError):
        await collect(FileAdapter.stream_lines(path))
    pieces = await collect(FileAdapter.stream_bytes(path, chunk_size=4))
    assert b"".join(data(pieces)) == path.read_bytes()
    assert {len(piece) for piece in data(pieces)[:-1]} == {4}
    with pytest.raises(FileNotFoundError):
        await collect(FileAdapter.stream_lines(tmp_path / "none"))


async def test_lines_of_the_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb"))
    assert data(await collect(FileAdapter.stream_stdin())) == ["a", "b"]


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/lines"
            body = f"one\n\n{self.headers.get('X-Word')}\n".encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_lines_of_a_response(server):
    httpx = pytest.importorskip("httpx")
    headers = {"X-Word": "two"}
    lines = HttpAdapter().stream_lines(f"{server}/lines", headers=headers)
    assert data(await collect(lines)) == ["one", "two"]
    with pytest.raises(Exception, match="404"):
        await collect(HttpAdapter().stream_lines(f"{server}/none"))
    async with httpx.AsyncClient() as client:
        lines = HttpAdapter(client).stream_lines(f"{server}/lines", headers=headers)
        events = await collect(lines)
        assert data(events) == ["one", "two"]
        assert events[0].metadata["status"] == 200
        with pytest.raises(httpx.HTTPStatusError):
            await collect(HttpAdapter(client).stream_lines(f"{server}/none"))
        assert not client.is_closed


async def test_what_gives_values_already():
    async def numbers():
        yield 1
        yield 2

    events = await collect(GeneratorAdapter.from_async_generator(numbers(), event_id_fn=str))
    assert [(event.id, event.data) for event in events] == [("1", 1), ("2", 2)]
    assert data(await collect(GeneratorAdapter.from_iterable(numbers()))) == [1, 2]
    assert data(await collect(GeneratorAdapter.from_iterable([1, 2]))) == [1, 2]
    answers = [None, "a", "b"]
    polled = GeneratorAdapter.from_callback(lambda: answers.pop(0), lambda: not answers, 0)
    assert data(await collect(polled)) == ["a", "b"]

    def broken():
        raise KeyError("no sensor")

    with pytest.raises(KeyError, match="no sensor"):
        await collect(GeneratorAdapter.from_callback(broken, lambda: False))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_asks_to_shut_down(number):
    before = signal.getsignal(number)
    with GracefulShutdown() as shutdown:
        assert not shutdown.should_shutdown
        waits = [asyncio.create_task(shutdown.wait_for_shutdown()) for _ in range(2)]
        await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        async with asyncio.timeout(HANG):
            await asyncio.gather(*waits)
            await shutdown.wait_for_shutdown()
        assert shutdown.should_shutdown
        assert signal.getsignal(number) == before, "a second one acts as before"
    assert signal.getsignal(number) == before


def test_signals_that_do_not_come_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    shutdown = GracefulShutdown()
    shutdown.setup()
    assert signal.getsignal(signal.SIGTERM) != before
    shutdown.restore()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not shutdown.should_shutdown


def test_the_public_names_are_as_they_were():
    assert {"Stream", "StreamConfig", "StreamMetrics", "stream_fn"} <= set(velo.__all__)
