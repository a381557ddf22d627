"""Lines of responses, and posted results, on an ASGI application that uvicorn serves."""

import asyncio
import json

import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, take
from hypothesis import given
from hypothesis import strategies as st

from helpers import until
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
from velo.connect.lines import Lines
from velo.connect.urls import endpoint_of

pytest.importorskip("httpx")
asgi = pytest.importorskip("servers.asgi")


class HttpPeer(Peer):
    """Gives what was produced as lines, and keeps the lines that are posted."""

    commits = False
    carries = frozenset()

    def __init__(self):
        self.values = []
        self.requests = []
        self.received = []
        self.answers = []  # statuses of the next answers
        self.headers = []
        self.body = b""
        self.open = False  # whether the response goes on behind the values
        self.breaks = 0  # how many responses break off behind the values
        self.pause = 0  # seconds before the head of a response

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.requests.append(scope | {"headers": dict(scope["headers"])})
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        await asyncio.sleep(self.pause)
        status = self.answers.pop(0) if self.answers else 200
        await send({"type": "http.response.start", "status": status, "headers": self.headers})
        if status != 200:
            await send({"type": "http.response.body", "body": self.body})
            return
        if scope["method"] == "POST":
            self.received.append(body)
            if self.open:
                await send({"type": "http.response.body", "body": b"...", "more_body": True})
                await asyncio.Event().wait()
        else:
            await self.give(send)
        await send({"type": "http.response.body", "body": b""})

    async def give(self, send):
        for value in self.values:
            await send({"type": "http.response.body", "body": value, "more_body": True})
        if self.breaks:
            self.breaks -= 1
            raise ConnectionError
        if self.open:
            await asyncio.Event().wait()

    async def produce(self, values, key=None, headers=()):
        self.values.extend(value + b"\n" for value in values)

    async def written(self, count):
        return b"".join(self.received).splitlines()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/lines"

    def source(self, **settings):
        return connect.http(self.url, **settings)

    def sink(self, **settings):
        return connect.http(self.url, **settings)

    def source_of_nothing(self):
        return connect.http(f"http://127.0.0.1:{free_port()}/")


@pytest.fixture
async def peer():
    peer = HttpPeer()
    async with asgi.asgi_server(peer) as port:
        peer.port = port
        yield peer


async def read(source):
    items = [item async for batch in source for item in batch]
    await source.close()
    return items


class TestHttp(SourceConformance, SinkConformance):
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


async def test_lines_of_one_server_go_to_another(peer):
    await peer.produce([b"%d" % number for number in range(1234)])
    figures = await doubled.over(peer.source()).into(peer.sink(batch=100))
    assert figures.read == 1234
    assert await peer.written(1234) == [b"%d" % (2 * number) for number in range(1234)]
    assert max(body.count(b"\n") for body in peer.received) == 100
    posts = [request for request in peer.requests if request["method"] == "POST"]
    assert {post["headers"][b"content-type"] for post in posts} == {b"application/x-ndjson"}


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)), st.integers(1, 20))
def test_lines_come_whole_however_they_are_cut(data, cuts, longest):
    lines, found, at = Lines(longest), [], 0
    for cut in [*sorted(cuts), len(data)]:
        found += lines.feed(data[at:cut])
        at = max(at, min(cut, len(data)))
    found += lines.last()
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert len(found) == len(expected)
    for line, whole in zip(found, expected, strict=True):
        if len(whole) > longest:
            assert isinstance(line, ValueError)
        else:
            assert line == whole.removesuffix(b"\r")


async def test_line_ends_empty_lines_and_a_last_line_without_an_end(peer):
    peer.values = [b"1\r", b"\n\n2", b"3\n4"]
    assert [item.value for item in await read(peer.source())] == [1, 23, 4]


async def test_a_line_that_is_too_long_is_no_event(peer):
    await peer.produce([b"1", b"2" * 100, b"3"])
    one, bad, three = await read(peer.source(max_line=50))
    assert (one.value, three.value) == (1, 3)
    assert "50 bytes" in str(bad.error)


async def test_a_response_that_breaks_off_is_an_error(peer):
    await peer.produce([b"1", b"2"])
    peer.breaks = 1
    source = peer.source()
    items = []
    with pytest.raises(Disconnected, match=f"127.0.0.1:{peer.port}"):
        async for batch in source:
            items += batch
    assert [item.value for item in items] == [1, 2]
    await source.close()


async def test_a_response_that_breaks_off_is_requested_again(peer, caplog):
    peer.values = [b"1\n", b"2\n", b"{to"]
    peer.breaks = 2
    source = peer.source(reconnect=True, decode="text")
    items = await read(source)
    # A line that broke off is no line.
    assert [item.value for item in items] == ["1", "2", "1", "2", "1", "2", "{to"]
    assert source.reconnects == 2
    assert caplog.text.count("lost the server") == 2


async def test_each_response_has_its_own_csv_header(peer):
    peer.values = [b"a,b\n", b"1,x\n"]
    peer.breaks = 1
    items = await read(peer.source(reconnect=True, decode="csv"))
    assert [item.value for item in items] == [{"a": 1, "b": "x"}] * 2


async def test_stop_ends_a_source_that_waits(peer):
    await peer.produce([b"1"])
    peer.open = True
    source = peer.source()
    _, iteration = await take(source, 1)
    waiting = asyncio.create_task(anext(iteration))
    await asyncio.sleep(0)
    source.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting
    await close(source, iteration)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ConnectError),
        (400, ConnectError),
        (401, AuthenticationFailed),
        (403, PermissionDenied),
        (404, NoSuchTopic),
        (501, ConnectError),
        (503, Unreachable),
    ],
)
async def test_a_refusal_is_an_error_with_the_reason(peer, status, kind):
    peer.body = b"field `n`\r\n \x1b is missing" + b"x" * 10_000
    peer.answers = [status] * 2
    source = peer.source()
    with pytest.raises(kind, match=f"status {status}.*field `n`  ?is missing") as caught:
        await take(source, 1)
    assert type(caught.value) is kind
    assert len(str(caught.value)) < 1000
    sink = peer.sink(retries=0)
    await sink.write([(None, 1)])
    with pytest.raises(kind, match=f"status {status}.*field `n`  ?is missing"):
        await sink.flush()
    # The results are not given up: another flush posts them.
    await sink.flush()
    assert await peer.written(1) == [b"1"]
    await source.close()
    await sink.close()


async def test_results_are_posted_again_until_the_server_takes_them(peer, caplog):
    peer.answers = [503, 429, 500]
    sink = peer.sink()
    await sink.write([(None, 1), (None, 2)])
    await sink.flush()
    assert peer.received == [b"1\n2\n"]
    assert len({request["headers"][b"idempotency-key"] for request in peer.requests}) == 1
    assert len(peer.requests) == 4
    assert sink.reconnects == 1
    assert caplog.text.count("lost the server") == 1
    await sink.close()


async def test_the_server_says_how_long_to_wait(peer, monkeypatch):
    pauses = []

    async def sleep(seconds, real=asyncio.sleep):
        pauses.append(seconds)
        await real(0)

    peer.answers, peer.headers = [503], [(b"retry-after", b"7")]
    sink = peer.sink()
    await sink.write([(None, 1)])
    monkeypatch.setattr("velo.connect._http.asyncio.sleep", sleep)
    await sink.flush()
    assert 7.0 in pauses
    await sink.close()


async def test_tries_are_counted(peer):
    peer.answers = [503] * 5
    sink = peer.sink(retries=1)
    await sink.write([(None, 1)])
    with pytest.raises(Unreachable, match="status 503"):
        await sink.flush()
    assert len(peer.requests) == 2
    await sink.close()


async def test_a_large_request_is_parted(peer):
    sink = peer.sink()
    await sink.write([(None, "x" * 400_000)] * 5)
    await sink.flush()
    assert [body.count(b"\n") for body in peer.received] == [2, 2, 1]
    await sink.close()


async def test_a_result_with_a_line_end_is_refused(peer):
    sink = peer.sink(encode="text")
    with pytest.raises(ValueError, match="line end"):
        await sink.write([(None, "a\nb")])
    await sink.flush()
    assert peer.received == []
    await sink.close()


async def test_logins_are_sent_and_not_shown(peer, tmp_path):
    await peer.produce([b"1"])
    (tmp_path / "token").write_text("hunter2\n")
    address = f"127.0.0.1:{peer.port}/lines"
    for source, header in (
        (connect.http(f"http://me:hunter2@{address}?key=hunter2"), b"Basic bWU6aHVudGVyMg=="),
        (connect.http(f"http://{address}", token="hunter2"), b"Bearer hunter2"),
        (endpoint_of(f"http://{address}?token_file={tmp_path}/token"), b"Bearer hunter2"),
    ):
        (item,) = await read(source)
        assert peer.requests[-1]["headers"][b"authorization"] == header
        assert "hunter2" not in f"{source!r} {source.name} {item}"
    assert peer.requests[0]["query_string"] == b"key=hunter2"
    peer.answers, peer.headers = [302], [(b"location", b"/?key=hunter2")]
    for port in (peer.port, free_port()):
        with pytest.raises(ConnectError) as caught:
            await take(connect.http(f"http://me:hunter2@127.0.0.1:{port}/?key=hunter2"), 1)
        assert "hunter2" not in str(caught.value)


async def test_a_url_has_settings_and_parameters_of_the_server(peer):
    await peer.produce([b"abc"])
    (item,) = await read(endpoint_of(f"{peer.url}?symbol=X&decode=text"))
    assert item.value == "abc"
    assert peer.requests[0]["query_string"] == b"symbol=X"
    with pytest.raises(ValueError, match="no setting `group`"):
        endpoint_of(peer.url, group="g")


async def test_a_server_without_an_answer_is_not_waited_for(peer):
    """It accepts connections, and says nothing."""
    writers = []  # a writer that is not kept closes its connection

    def accept(_reader, writer):
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    source = connect.http(f"http://127.0.0.1:{port}/", connect_timeout=0.2)
    with pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port}/ within 0\.2 s"):
        await take(source, 1)
    await source.close()
    server.close()
    for writer in writers:
        writer.close()


async def test_silence_has_a_limit(peer):
    await peer.produce([b"1"])
    peer.open = True
    source = peer.source(read_timeout=2.0)
    _, iteration = await take(source, 1)
    with pytest.raises(Disconnected, match=r"silent for too long: 2 s \(`read_timeout`\)"):
        await anext(iteration)
    await close(source, iteration)


async def test_the_head_of_a_response_may_take_longer_than_its_body_may_be_silent(peer):
    await peer.produce([b"1"])
    peer.pause = 0.3
    # It requests again where the body, too, is late once.
    source = peer.source(read_timeout=0.1, reconnect=True)
    _, iteration = await take(source, 1)
    await close(source, iteration)


async def test_a_result_counts_with_the_status_of_its_answer(peer):
    """The rest of the response is read for the sake of the connection alone."""
    peer.open = True
    sink = peer.sink(read_timeout=0.1, connect_timeout=1.0, retries=3)
    await sink.write([(None, 1)])
    await sink.flush()
    assert set(peer.received) == {b"1\n"}
    await sink.close()


def test_settings_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="http://"):
        connect.http("ftp://host/")
    with pytest.raises(ValueError, match="batch"):
        connect.http("http://host/", batch=0)
    with pytest.raises(ValueError, match="msgpack"):
        connect.http("http://host/", decode="msgpack")


async def test_results_are_json(peer):
    sink = peer.sink()
    await sink.write([(None, {"a": "ä"})])
    await sink.flush()
    assert json.loads(peer.received[0]) == {"a": "ä"}
    await sink.close()
