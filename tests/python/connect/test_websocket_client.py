"""The client of WebSockets, on a server of the library `websockets`."""

import asyncio
import contextlib

import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, take

from helpers import HANG, cancel, until
from servers.server import free_port
from velo import connect, stream_fn
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    Disconnected,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
)
from velo.connect.urls import endpoint_of

server_of = pytest.importorskip("websockets.asyncio.server")


class WebsocketPeer(Peer):
    """A server that sends what was produced on each connection, and keeps what arrives."""

    commits = False
    carries = frozenset()

    def __init__(self):
        self.port = free_port()
        self.values = []
        self.received = []
        self.connections = []
        self.requests = []
        self.server = None
        self.status = None
        self.pause = 0
        self.changed = asyncio.Condition()

    async def start(self):
        self.server = await server_of.serve(
            self.serve,
            "127.0.0.1",
            self.port,
            process_request=self.process_request,
            compression=None,
        )

    def process_request(self, connection, request):
        self.requests.append(request)
        if self.status is not None:
            return connection.respond(self.status, "no")

    async def serve(self, connection):
        self.connections.append(connection)
        sending = asyncio.create_task(self.send(connection))
        try:
            async for message in connection:
                async with self.changed:
                    self.received.append(message)
                    self.changed.notify_all()
                if self.pause:
                    await asyncio.sleep(self.pause)
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def send(self, connection):
        sent = 0
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: len(self.values) > sent)
            while sent < len(self.values):
                await connection.send(self.values[sent])
                sent += 1

    async def stop(self):
        self.server.close()
        await self.server.wait_closed()

    async def produce(self, values, key=None, headers=()):
        async with self.changed:
            self.values.extend(values)
            self.changed.notify_all()

    async def written(self, count):
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(lambda: len(self.received) >= count)
        return [m.encode() if isinstance(m, str) else m for m in self.received]

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/feed"

    def source(self, **settings):
        return connect.websocket(self.url, **settings)

    def sink(self, **settings):
        return connect.websocket(self.url, **settings)

    def source_of_nothing(self):
        return connect.websocket(f"ws://127.0.0.1:{free_port()}/")


@pytest.fixture
async def peer():
    peer = WebsocketPeer()
    await peer.start()
    yield peer
    await peer.stop()


class TestWebsocket(SourceConformance, SinkConformance):
    async def test_nothing_is_left_behind(self, peer):
        await peer.produce([b"1"])
        before = asyncio.all_tasks()
        source = peer.source()
        _, iteration = await take(source, 1)
        await close(source, iteration)
        # Those of the server are in the same loop, and end soon.
        await until(lambda: asyncio.all_tasks() <= before)


@stream_fn
async def doubled(numbers):
    async for number in numbers:
        yield 2 * number


async def test_results_of_one_server_go_to_another(peer):
    source = peer.source()
    task = asyncio.create_task(doubled.over(source).into(peer.sink()))
    await peer.produce([b"%d" % number for number in range(100)])
    assert await peer.written(100) == [b"%d" % (2 * number) for number in range(100)]
    source.stop()
    assert (await task).read == 100


async def test_one_object_that_is_source_and_sink_sends_the_results_of_the_end_once(peer):
    @stream_fn
    async def total(numbers):
        yield sum([number async for number in numbers])

    await peer.produce([b"1", b"2", b"3"])
    both = peer.source()
    run = total.over(both)
    task = asyncio.create_task(run.into(both, commit_every=0.01))
    await until(lambda: list(run.figures.committed.values()) == [2])
    await peer.connections[0].close()
    await task
    assert peer.received == ["6"]
    assert len(peer.connections) == 2


async def test_the_end_of_the_server_is_the_end_of_the_source(peer):
    await peer.produce([b"1"])
    source = peer.source()
    items, iteration = await take(source, 1)
    await peer.connections[0].close()
    with pytest.raises(StopAsyncIteration):
        await anext(iteration)
    await close(source, iteration)


async def test_a_lost_connection_is_made_again(peer):
    await peer.produce([b"1"])
    source = peer.source(subscribe=[{"channel": "trades"}])
    _, iteration = await take(source, 1)
    peer.connections[0].transport.abort()
    (item,) = await anext(iteration)
    assert item.value == 1
    assert source.reconnects == 1
    await peer.written(2)
    assert peer.received == ['{"channel":"trades"}'] * 2
    await close(source, iteration)


async def test_a_server_that_restarts_is_waited_for(peer, caplog):
    await peer.produce([b"1"])
    source = peer.source()
    _, iteration = await take(source, 1)
    await peer.stop()  # with code 1001
    waiting = asyncio.create_task(anext(iteration))
    await until(lambda: "lost the server" in caplog.text)
    await peer.start()
    (item,) = await waiting
    assert item.value == 1
    await close(source, iteration)
    assert caplog.text.count("lost the server") == 1
    assert caplog.text.count("again") == 1


async def test_without_reconnecting_a_lost_connection_is_an_error(peer):
    await peer.produce([b"1"])
    source = peer.source(reconnect=False)
    _, iteration = await take(source, 1)
    peer.connections[0].transport.abort()
    with pytest.raises(Disconnected, match="broke off"):
        await anext(iteration)
    await close(source, iteration)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1008, PermissionDenied), (3000, AuthenticationFailed), (4001, ConnectError)],
)
async def test_a_refusal_ends_the_source(peer, code, kind):
    await peer.produce([b"1"])
    source = peer.source()
    _, iteration = await take(source, 1)
    await peer.connections[0].close(code, "not for you")
    with pytest.raises(kind, match=rf"code {code}: not for you"):
        await anext(iteration)
    await close(source, iteration)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationFailed),
        (403, PermissionDenied),
        (404, NoSuchTopic),
        (410, ConnectError),
        (503, Unreachable),
    ],
)
async def test_a_refused_request_is_an_error(peer, status, kind):
    peer.status = status
    source = peer.source()
    with pytest.raises(kind, match=f"status {status}"):
        await take(source, 1)
    sink = peer.sink()
    with pytest.raises(kind, match=f"status {status}"):
        await sink.write([(None, 1)])
    await sink.close()


async def test_a_message_that_is_too_long_ends_the_source(peer):
    await peer.produce([b'"' + b"x" * 2000 + b'"'])
    source = peer.source(max_size=1000)
    with pytest.raises(ConnectError, match="1009"):
        await take(source, 1)
    await source.close()


async def test_reading_stops_while_nothing_is_asked_for(peer):
    value = b'"' + b"x" * 100_000 + b'"'
    await peer.produce([value] * 300)
    source = peer.source()
    _, iteration = await take(source, 1)
    (connection,) = peer.connections
    # 30 MB do not fit into the buffers between the two: the server has to wait.
    await until(lambda: connection.transport.get_write_buffer_size() > 0)
    items = 1
    async with asyncio.timeout(60):
        while items < 300:
            items += len(await anext(iteration))
    await close(source, iteration)


async def test_closing_a_source_that_is_behind_takes_no_time_out(peer):
    await peer.produce([b'"' + b"x" * 100_000 + b'"'] * 300)
    source = peer.source()
    _, iteration = await take(source, 1)
    (connection,) = peer.connections
    await until(lambda: connection.transport.get_write_buffer_size() > 0)
    await close(source, iteration)
    await asyncio.wait_for(connection.wait_closed(), 30)
    assert connection.close_code == 1000


async def test_stop_ends_a_source_that_waits(peer):
    await peer.produce([b"1"])
    source = peer.source()
    _, iteration = await take(source, 1)
    waiting = asyncio.create_task(anext(iteration))
    await asyncio.sleep(0)
    source.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting
    await close(source, iteration)


class Proxy:
    """Takes the server's place. From `freeze` on, connections that stand pass on nothing more.

    While `refusals` is above zero, it closes what it has accepted.
    """

    def __init__(self, port):
        self.server_port = port
        self.frozen = []
        self.links = []
        self.refusals = 0

    async def serve(self, reader, writer):
        if self.refusals:
            self.refusals -= 1
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.server_port)
        link = object()
        self.links.append(link)

        async def pass_on(source, sink):
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    if link not in self.frozen:
                        sink.write(data)
            sink.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    def freeze(self):
        self.frozen += self.links


@pytest.fixture
async def proxy(peer):
    proxy = Proxy(peer.port)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        proxy.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        yield proxy


async def test_a_silent_server_is_found_dead(peer, proxy):
    await peer.produce([b"1"])
    source = connect.websocket(proxy.url, keepalive=0.2)
    _, iteration = await take(source, 1)
    proxy.freeze()
    (item,) = await anext(iteration)
    assert item.value == 1
    assert source.reconnects >= 1
    await close(source, iteration)


async def test_a_proxy_that_closes_what_it_has_accepted_is_tried_again(peer, proxy):
    """As one does while the server behind it restarts."""
    await peer.produce([b"1"])
    source, sink = connect.websocket(proxy.url), connect.websocket(proxy.url)
    _, iteration = await take(source, 1)
    await sink.write([(None, 2)])
    await sink.flush()
    proxy.refusals = 3
    for connection in peer.connections:
        connection.transport.abort()
    (item,) = await anext(iteration)
    assert item.value == 1
    await sink.write([(None, 3)])
    await sink.flush()
    assert proxy.refusals == 0
    assert peer.received[-1] == "3"
    await close(source, iteration)
    await sink.close()
    proxy.refusals = 1
    with pytest.raises(Unreachable, match="no WebSocket server answers"):
        await take(connect.websocket(proxy.url), 1)


async def test_results_that_a_silent_server_does_not_confirm_are_sent_again(peer, proxy):
    sink = connect.websocket(proxy.url, keepalive=1.0)
    await sink.write([(None, 1)])
    await sink.flush()
    proxy.freeze()
    await sink.write([(None, 2)])
    await sink.flush()
    assert set(peer.received) == {"1", "2"}
    assert sink.reconnects >= 1
    await sink.close()


async def test_unconfirmed_results_are_sent_again(peer):
    sink = peer.sink()
    await sink.write([(None, 1)])
    await sink.flush()
    await peer.stop()
    writing = asyncio.create_task(sink.write([(None, 2), (None, 3)]))
    await peer.start()
    await writing
    await sink.flush()
    assert set(peer.received) == {"1", "2", "3"}
    await sink.close()


async def test_results_wait_for_the_server(peer):
    """No more than `in_flight` results are unconfirmed."""
    sink = peer.sink(in_flight=10)
    await sink.write([(None, number) for number in range(35)])
    assert len(peer.received) >= 20
    await sink.flush()
    assert peer.received == [str(number) for number in range(35)]
    await sink.close()


async def test_a_server_that_is_slow_confirms_results_as_it_reads_them(peer):
    """All of them take it longer than `keepalive`; the few between two pings do not."""
    peer.pause = 0.03
    sink = peer.sink(keepalive=4.0)
    # So long that the server's library reads only a few ahead of what is asked for.
    values = [f"{number} {'x' * 50_000}" for number in range(150)]
    await sink.write([(None, value) for value in values])
    await asyncio.wait_for(sink.flush(), HANG)
    await peer.written(150)
    assert peer.received == [f'"{value}"' for value in values]
    await sink.close()


async def test_results_that_were_confirmed_are_not_sent_again(peer):
    sink = peer.sink()
    await sink.write([(None, number) for number in range(64)])
    await until(lambda: all(pong.done() for pong, _ in sink._sender._pings))
    peer.connections[0].transport.abort()
    await sink.write([(None, 64)])
    await sink.flush()
    assert peer.received == [str(number) for number in range(65)]
    assert sink.reconnects == 1
    await sink.close()


async def test_a_flush_that_is_cancelled_may_be_called_again(peer, proxy):
    sink = connect.websocket(proxy.url)
    await sink.write([(None, number) for number in range(40)])
    await cancel(asyncio.ensure_future(sink.flush()))
    flushing = asyncio.ensure_future(sink.flush())
    await asyncio.sleep(0)
    await cancel(flushing)
    await sink.flush()
    assert peer.received == [str(number) for number in range(40)]
    await sink.close()


@pytest.mark.parametrize(("binary", "kind"), [(None, str), (True, bytes)])
async def test_results_are_text_or_binary(peer, binary, kind):
    sink = peer.sink(binary=binary)
    await sink.write([(None, 1)])
    await sink.flush()
    assert [type(message) for message in peer.received] == [kind]
    await sink.close()


async def test_logins_are_sent_and_not_shown(peer, tmp_path):
    await peer.produce([b"1"])
    (tmp_path / "token").write_text("hunter2\n")
    address = f"127.0.0.1:{peer.port}/feed"
    for source, header in (
        (connect.websocket(f"ws://me:hunter2@{address}?key=hunter2"), "Basic bWU6aHVudGVyMg=="),
        (connect.websocket(f"ws://{address}", token="hunter2"), "Bearer hunter2"),
        (endpoint_of(f"ws://{address}?token_file={tmp_path}/token"), "Bearer hunter2"),
    ):
        _, iteration = await take(source, 1)
        assert peer.requests[-1].headers["Authorization"] == header
        assert "hunter2" not in f"{source!r} {source.name}"
        await close(source, iteration)
    assert peer.requests[0].path == "/feed?key=hunter2"
    with pytest.raises(Unreachable) as caught:
        await take(connect.websocket(f"ws://me:hunter2@127.0.0.1:{free_port()}/?key=hunter2"), 1)
    assert "hunter2" not in str(caught.value)


async def test_a_url_has_settings_and_parameters_of_the_server(peer):
    await peer.produce([b"abc"])
    source = endpoint_of(f"{peer.url}?symbol=X&decode=text")
    (item,), iteration = await take(source, 1)
    assert item.value == "abc"
    assert peer.requests[0].path == "/feed?symbol=X"
    await close(source, iteration)
    with pytest.raises(ValueError, match="no setting `group`"):
        endpoint_of(peer.url, group="g")


def test_settings_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="ws://"):
        connect.websocket("http://host/")
    with pytest.raises(ValueError, match="in_flight"):
        connect.websocket("ws://host/", in_flight=0)
    with pytest.raises(ValueError, match="no password"):
        connect.websocket("ws://host/", user="me")
    with pytest.raises(ValueError, match="not both"):
        connect.websocket("ws://host/", user="me", password="x", token="y")
