"""Server-sent events, on an ASGI application that uvicorn serves."""

import asyncio

import pytest
from conformance import Peer, SourceConformance, close, take
from hypothesis import given
from hypothesis import strategies as st

from helpers import until
from servers.server import free_port
from velo import connect, stream_fn
from velo.connect import Bad
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    Disconnected,
    NoSuchTopic,
    Unreachable,
)
from velo.connect.urls import endpoint_of

pytest.importorskip("httpx")
asgi = pytest.importorskip("servers.asgi")
from velo.connect._sse import _Parser  # noqa: E402


class SsePeer(Peer):
    """Gives the events behind `Last-Event-ID`; ids are numbers from 1 on."""

    commits = False
    seeks = True
    carries = frozenset()

    def __init__(self):
        self.values = []
        self.ids = 1  # each which event has an id: 0 for none
        self.requests = []
        self.answers = []
        self.type = b"text/event-stream; charset=utf-8"
        self.breaks_after = []  # of each response: behind how many events it breaks off
        self.first = b""
        self.open = True
        self.closing = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        self.requests.append(headers | {"query": scope["query_string"].decode()})
        status = self.answers.pop(0) if self.answers else 200
        head = [(b"content-type", self.type)]
        await send({"type": "http.response.start", "status": status, "headers": head})
        if status == 200:
            await self.give(send, int(headers.get(b"last-event-id", b"0")))
        await send({"type": "http.response.body", "body": b""})

    async def give(self, send, after):
        most = self.breaks_after.pop(0) if self.breaks_after else None
        await send({"type": "http.response.body", "body": self.first, "more_body": True})
        for number, value in list(enumerate(self.values, 1))[after:][:most]:
            text = b"id: %d\n" % number if self.ids and number % self.ids == 0 else b""
            for line in value.split(b"\n"):
                text += b"data: " + line + b"\n"
            await send({"type": "http.response.body", "body": text + b"\n", "more_body": True})
        if most is not None:
            await send({"type": "http.response.body", "body": b"data: torn", "more_body": True})
            raise ConnectionError
        if self.open:
            await self.closing.wait()

    async def produce(self, values, key=None, headers=()):
        self.values.extend(values)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/events"

    def source(self, **settings):
        return connect.sse(self.url, **settings)

    def source_of_nothing(self):
        return connect.sse(f"http://127.0.0.1:{free_port()}/")


@pytest.fixture
async def peer():
    peer = SsePeer()
    async with asgi.asgi_server(peer) as port:
        peer.port = port
        yield peer
        peer.closing.set()


async def read(source):
    items = [item async for batch in source for item in batch]
    await source.close()
    return items


class TestSse(SourceConformance):
    async def test_nothing_is_left_behind(self, peer):
        await peer.produce([b"1"])
        before = asyncio.all_tasks()
        source = peer.source()
        _, iteration = await take(source, 1)
        await close(source, iteration)
        peer.closing.set()
        # Those of the server are in the same loop, and end soon.
        await until(lambda: asyncio.all_tasks() <= before)


async def test_a_source_goes_on_behind_the_last_event(peer, caplog):
    await peer.produce([b"%d" % number for number in range(10)])
    peer.breaks_after = [3, 0, 4]
    source = peer.source()
    items, iteration = await take(source, 10)
    assert [item.value for item in items] == list(range(10))
    assert [item.position for item in items] == [str(number) for number in range(1, 11)]
    asked = [request.get(b"last-event-id") for request in peer.requests]
    assert asked == [None, b"3", b"3", b"7"]
    assert source.reconnects == caplog.text.count("lost the server") >= 2
    await close(source, iteration)


async def test_a_response_that_ends_is_requested_again_when_the_server_likes(peer):
    await peer.produce([b"1", b"2"])
    peer.open = False
    peer.first = b"retry: 1\n\n"
    source = peer.source()
    items, iteration = await take(source, 2)
    waiting = asyncio.create_task(anext(iteration))
    await until(lambda: len(peer.requests) > 2)
    await peer.produce([b"3"])
    (item,) = await waiting
    assert (item.value, item.position) == (3, "3")
    assert source.reconnects == 0  # an end is no outage
    await close(source, iteration)


async def test_a_position_says_where_to_begin(peer):
    await peer.produce([b"1", b"2", b"3"])
    peer.open = False
    assert [item.value for item in await read(peer.source(start="2", reconnect=False))] == [3]


async def test_204_is_the_end(peer):
    peer.answers = [204]
    assert await read(peer.source()) == []


async def test_without_reconnecting_the_end_is_the_end(peer):
    await peer.produce([b"1"])
    peer.open = False
    assert len(await read(peer.source(reconnect=False))) == 1
    peer.breaks_after = [1]
    source = peer.source(reconnect=False)
    with pytest.raises(Disconnected):
        await read(source)
    await source.close()


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


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthenticationFailed), (404, NoSuchTopic), (418, ConnectError), (503, Unreachable)],
)
async def test_a_refusal_is_an_error(peer, status, kind):
    peer.answers = [status]
    source = peer.source()
    with pytest.raises(kind, match=f"status {status}"):
        await take(source, 1)
    await source.close()


async def test_another_type_is_an_error(peer):
    peer.type = b"text/html"
    source = peer.source()
    with pytest.raises(ConnectError, match="gives text/html, and no text/event-stream"):
        await take(source, 1)
    await source.close()


@stream_fn
async def total(numbers):
    sum = 0
    async for number in numbers:
        sum += number
    yield sum


async def test_a_source_goes_on_behind_events_without_an_id_of_their_own(peer):
    await peer.produce([b"%d" % number for number in range(1, 11)])
    peer.ids = 4
    peer.breaks_after = [6, 1]  # behind the second event without an id behind 4, then behind 5
    source = peer.source()
    items, iteration = await take(source, 10)
    assert [item.value for item in items] == list(range(1, 11))
    positions = [item.position for item in items]
    assert positions[3:] == ["4", ("4", 1), ("4", 2), ("4", 3), "8", ("8", 1), ("8", 2)]
    await close(source, iteration)
    for count in range(3, 10):
        source = peer.source()
        source.seek({items[0].partition: positions[count]})
        rest, iteration = await take(source, 9 - count) if count < 9 else ([], aiter(source))
        assert [item.position for item in rest] == positions[count + 1 :]
        await close(source, iteration)


async def test_positions_without_any_id_are_of_one_run(peer):
    await peer.produce([b"1", b"2"])
    peer.ids, peer.open = 0, False
    first = await read(peer.source(reconnect=False))
    source = peer.source(reconnect=False)
    source.seek({first[0].partition: first[0].position})
    again = await read(source)
    assert [item.value for item in again] == [1, 2]  # what the server sends, whatever that is
    assert len({item.position for item in [*first, *again]}) == 4


@pytest.mark.parametrize("ids", [1, 0])
async def test_a_function_reads_events_with_and_without_ids(peer, ids):
    await peer.produce([b"%d" % number for number in range(100)])
    peer.ids, peer.open = ids, False
    results = [r async for r in total.over(peer.source(reconnect=False))]
    assert results == [4950]


async def test_a_url_has_settings_and_parameters_of_the_server(peer):
    await peer.produce([b"a\nb"])
    peer.open = False
    url = peer.url.replace("http://", "sse://me:hunter2@")
    source = endpoint_of(f"{url}?symbol=X&decode=text&reconnect=false")
    assert "hunter2" not in f"{source!r} {source.name}"
    (item,) = await read(source)
    assert (item.value, item.topic) == ("a\nb", "message")
    assert peer.requests[0]["query"] == "symbol=X"
    assert peer.requests[0][b"authorization"].startswith(b"Basic ")


# The format.


def events(data, size=1000):
    parser = _Parser(size, "")
    return parser.feed(data), parser


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: a\n\n", [("message", b"a", ("", 1))]),
        (b"\xef\xbb\xbfdata:a\n\n", [("message", b"a", ("", 1))]),
        (b"data:  a\r\n\r\n", [("message", b" a", ("", 1))]),
        (b"data: a\rdata\rdata: c\r\r", [("message", b"a\n\nc", ("", 1))]),
        (b": comment\n\nid: 1\n\n: ping\n\n", []),
        (b"data\n\n", [("message", b"", ("", 1))]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [("x", b"a", ("", 1)), ("message", b"b", ("", 2))]),
        (
            b"id: 1\ndata: a\n\ndata: b\n\n",
            [("message", b"a", ("1", 0)), ("message", b"b", ("1", 1))],
        ),
        (
            b"id: 1\ndata: a\n\nid\ndata: b\n\n",
            [("message", b"a", ("1", 0)), ("message", b"b", ("", 0))],
        ),
        (b"id: 1\0\ndata: a\n\n", [("message", b"a", ("", 1))]),
        (b"data: a\nunknown: x\n\ndata: torn\n", [("message", b"a", ("", 1))]),
    ],
)
def test_the_format_of_events(data, expected):
    assert events(data)[0] == expected


@given(
    st.lists(
        st.sampled_from([b"data: a", b"id: 7", b"event: x", b"\r", b"\n", b"\r\n", b":", b"data"])
    ),
    st.integers(1, 7),
)
def test_events_are_the_same_however_they_are_cut(pieces, size):
    data = b"".join(pieces)
    whole, parser = events(data)
    cut = _Parser(1000, "")
    found = [e for at in range(0, len(data), size) for e in cut.feed(data[at : at + size])]
    assert found == whole
    assert cut.last == parser.last


@pytest.mark.parametrize("data", [b"data: " + b"x" * 2000, b"data: xxxx\n" * 300])
def test_an_event_that_is_too_large_is_no_event(data):
    found, _ = events(b"id: 1\n" + data + b"\n\nid: 2\ndata: 5\n\n")
    assert isinstance(found[0][1], ValueError)
    assert found[0][2] == ("1", 0)
    assert found[1] == ("message", b"5", ("2", 0))


async def test_a_large_event_is_a_bad_record(peer):
    await peer.produce([b"1", b"2" * 5000, b"3"])
    source = peer.source(max_size=1000)
    items, iteration = await take(source, 3)
    assert [type(item) is Bad for item in items] == [False, True, False]
    assert items[1].record.position == "2"
    await close(source, iteration)
