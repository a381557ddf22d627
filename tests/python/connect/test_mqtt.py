"""The connector of MQTT, on Mosquitto."""

import asyncio
import queue
import socket
import ssl
import threading
import time
import types
import uuid
from urllib.parse import urlsplit

import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, last_positions, take

from helpers import until
from servers.server import free_port
from velo import connect
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    PermissionDenied,
    Unreachable,
)

mqtt_client = pytest.importorskip("paho.mqtt.client")
from paho.mqtt.packettypes import PacketTypes  # noqa: E402
from paho.mqtt.properties import Properties  # noqa: E402

from velo.connect._mqtt import endpoint  # noqa: E402
from velo.connect._mqtt.link import Link  # noqa: E402


def client_of(server, client_id="", expiry=0):
    """A connected client of paho, whose thread runs."""
    client = mqtt_client.Client(
        mqtt_client.CallbackAPIVersion.VERSION2, client_id, protocol=mqtt_client.MQTTv5
    )
    ready, subscribed, properties = (
        threading.Event(),
        threading.Event(),
        Properties(PacketTypes.CONNECT),
    )
    properties.SessionExpiryInterval = expiry
    client.on_connect = lambda *_: ready.set()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", server.port, clean_start=False, properties=properties)
    client.loop_start()
    assert ready.wait(30)
    client.subscribed = subscribed
    return client


def end(client):
    client.disconnect()
    client.loop_stop()


def publish(server, topic, values, headers=(), qos=1, retain=False):
    client = client_of(server)
    properties = Properties(PacketTypes.PUBLISH)
    if headers:
        properties.UserProperty = [(name, value.decode()) for name, value in headers]
    sent = [
        client.publish(topic, value, qos=qos, retain=retain, properties=properties)
        for value in values
    ]
    for info in sent:
        info.wait_for_publish(30)
        assert info.is_published()
    end(client)


class MqttPeer(Peer):
    """A topic with a session that exists from the start."""

    carries = frozenset({"headers"})

    def __init__(self, server):
        self.server = server
        self.address = f"127.0.0.1:{server.port}"
        self.topic = f"t/{uuid.uuid4().hex}"
        self.client_id = uuid.uuid4().hex
        self.make_session(self.client_id, self.topic)
        self.received = queue.Queue()
        self.watcher = client_of(server, uuid.uuid4().hex, expiry=600)
        self.watcher.on_message = lambda _client, _data, message: self.received.put(message)
        self.watcher.subscribe(f"{self.topic}/out/#", qos=1)
        assert self.watcher.subscribed.wait(30)

    def make_session(self, client_id, topic):
        """As a source leaves it behind."""
        client = client_of(self.server, client_id, expiry=600)
        client.subscribe(topic, qos=1)
        assert client.subscribed.wait(30)
        end(client)

    async def produce(self, values, key=None, headers=(), **settings):
        await asyncio.to_thread(publish, self.server, self.topic, values, headers, **settings)

    async def messages(self, count):
        return [await asyncio.to_thread(self.received.get, True, 30) for _ in range(count)]

    async def written(self, count):
        return [message.payload for message in await self.messages(count)]

    def source(self, **settings):
        settings = {"client_id": self.client_id, **settings}
        return connect.mqtt(self.address, self.topic, **settings)

    def sink(self, **settings):
        return connect.mqtt(self.address, f"{self.topic}/out", **settings)

    def source_of_nothing(self):
        return connect.mqtt(f"127.0.0.1:{free_port()}", "t")

    def close(self):
        end(self.watcher)


@pytest.fixture
def peer(mosquitto):
    peer = MqttPeer(mosquitto)
    yield peer
    peer.close()


class TestMqtt(SourceConformance, SinkConformance):
    pass


async def test_wildcards_and_several_topics_say_where_a_message_comes_from(peer, mosquitto):
    base = peer.topic
    source = connect.mqtt(peer.address, [f"{base}/+/a", f"{base}/b/#"])
    iteration = aiter(source)
    first = asyncio.ensure_future(anext(iteration))
    await until(lambda: source._source is not None and source._source.up.is_set())
    for topic in (f"{base}/x/a", f"{base}/x/none", f"{base}/b/c/d"):
        await asyncio.to_thread(publish, mosquitto, topic, [b"1"])
    items = list(await first)
    while len(items) < 2:
        items += await anext(iteration)
    assert [item.topic for item in items] == [f"{base}/x/a", f"{base}/b/c/d"]
    assert [item.key for item in items] == [item.topic for item in items]
    assert len({item.partition for item in items}) == 1
    await close(source, iteration)


async def test_acknowledging_some_brings_the_others_again_marked_as_redelivered(peer):
    await peer.produce([b"%d" % number for number in range(6)])
    source = peer.source()
    items, iteration = await take(source, 6)
    await source.commit(last_positions(items[:2]))
    await source.commit({"another partition": 5})
    await close(source, iteration)
    source = peer.source()
    again, iteration = await take(source, 4)
    assert [item.value for item in again] == [2, 3, 4, 5]
    assert source.redelivered == 4
    await close(source, iteration)


async def test_prefetch_bounds_what_is_unacknowledged(peer):
    await peer.produce([b"%d" % number for number in range(20)])
    source = peer.source(prefetch=5)
    items, iteration = await take(source, 5)
    more = asyncio.ensure_future(anext(iteration))
    # A message on another path arrives meanwhile: the broker had its chance to send more.
    sink = peer.sink()
    await sink.write([("k", 1)])
    await sink.flush()
    await peer.written(1)
    assert not more.done()
    assert not source._read
    await source.commit(last_positions(items))
    assert [item.value for item in await asyncio.wait_for(more, 30)][0] == 5
    await sink.close()
    await close(source, iteration)


async def test_messages_of_qos_2_arrive_and_are_acknowledged(peer):
    await peer.produce([b"1", b"2"], qos=2)
    source = peer.source()
    items, iteration = await take(source, 2)
    await source.commit(last_positions(items))
    await close(source, iteration)
    await peer.produce([b"3"])
    source = peer.source()
    items, iteration = await take(source, 1)
    assert [item.value for item in items] == [3]
    await close(source, iteration)


async def test_qos_2_is_refused_with_its_reason(peer):
    with pytest.raises(ValueError, match="would lose"):
        peer.source(qos=2)


async def test_messages_of_qos_0_wait_in_the_network_while_the_source_is_not_asked(peer):
    source = connect.mqtt(peer.address, peer.topic, qos=0, prefetch=10)
    iteration = aiter(source)
    first = asyncio.ensure_future(anext(iteration))
    await until(lambda: source._source is not None and source._source.up.is_set())
    await peer.produce([b"%d" % number for number in range(200)], qos=0)
    items = list(await first)
    await until(lambda: len(source._read) > 10)
    assert len(source._read) == 11
    async with asyncio.timeout(30):
        while len(items) < 200:
            items += await anext(iteration)
    assert [item.value for item in items] == list(range(200))
    await close(source, iteration)


async def test_a_new_start_drops_what_the_session_has_kept(peer):
    await peer.produce([b"1"])
    source = peer.source(start="latest")
    iteration = aiter(source)
    first = asyncio.ensure_future(anext(iteration))
    await until(lambda: source._source is not None and source._source.up.is_set())
    await peer.produce([b"2"])
    assert [item.value for item in await first] == [2]
    await close(source, iteration)


async def test_until_leaves_later_messages_to_the_session(peer, monkeypatch):
    now = 0.0
    monkeypatch.setattr(endpoint, "time", types.SimpleNamespace(time=lambda: now))
    await peer.produce([b"1", b"2"])
    source = peer.source(until=100.0)
    items, iteration = await take(source, 2)
    now = 100.0
    await peer.produce([b"3"])
    async with asyncio.timeout(30):
        assert await anext(iteration, None) is None
    await source.commit(last_positions(items))
    await close(source, iteration)
    again = peer.source()
    (third,), iteration = await take(again, 1)
    assert third.value == 3
    await close(again, iteration)


async def test_until_ends_a_source_without_messages(peer):
    end = time.time() + 0.1
    source = peer.source(until=end)
    async with asyncio.timeout(30):
        assert [batch async for batch in source] == []
    assert time.time() >= end
    await source.close()


@pytest.mark.parametrize("until", ["end", True])
def test_until_is_a_time(until):
    with pytest.raises(ValueError, match="seconds since the epoch"):
        connect.mqtt("localhost", "t", until=until)


async def test_a_group_shares_messages(peer, mosquitto):
    sources = [connect.mqtt(peer.address, peer.topic, group="g") for _ in range(2)]
    items = [[], []]

    async def read(index):
        async for batch in sources[index]:
            items[index] += batch
            await sources[index].commit(last_positions(batch))

    readers = [asyncio.ensure_future(read(index)) for index in range(2)]
    await until(lambda: all(s._source is not None and s._source.up.is_set() for s in sources))
    await peer.produce([b"%d" % number for number in range(40)])
    await until(lambda: len(items[0]) + len(items[1]) >= 40)
    assert sorted(item.value for item in items[0] + items[1]) == list(range(40))
    assert items[0]
    assert items[1]
    for source, reader in zip(sources, readers, strict=True):
        source.stop()
        await reader
        await source.close()


async def test_a_second_client_of_the_same_name_ends_the_first_with_an_error(peer):
    first = peer.source()
    _, iteration = await take_started(first)
    waiting = asyncio.ensure_future(anext(iteration))
    second = peer.source()
    _, other = await take_started(second)
    # The broker gives the session to whichever comes last, so that both would come for ever.
    others = asyncio.ensure_future(anext(other))
    done, _ = await asyncio.wait({waiting, others}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(ConnectError, match="client_id"):
        done.pop().result()
    for task in (waiting, others):
        task.cancel()
        with pytest.raises((ConnectError, asyncio.CancelledError)):
            await task
    await close(second, other)
    await first.close()


async def take_started(source):
    """Begin to read, and wait for the connection alone."""
    iteration = aiter(source)
    link = asyncio.ensure_future(source._open_source())
    await link
    return [], iteration


async def test_a_paused_source_gives_nothing_until_it_is_resumed(peer):
    await peer.produce([b"1"])
    source = peer.source()
    (item,), iteration = await take(source, 1)
    source.pause([item.partition])
    await peer.produce([b"2"])
    more = asyncio.ensure_future(anext(iteration))
    await until(lambda: source.lag() == {item.partition: 1})
    assert not more.done()
    source.resume([item.partition])
    assert [item.value for item in await more] == [2]
    await close(source, iteration)


async def test_the_server_ends_and_starts_again_under_source_and_sink(own_mosquitto, caplog):
    peer = MqttPeer(own_mosquitto)
    await peer.produce([b"1", b"2"])
    source, sink = peer.source(), peer.sink()
    items, iteration = await take(source, 2)
    await sink.write([("k", 1)])
    await sink.flush()
    own_mosquitto.stop()
    await until(lambda: "lost the server" in caplog.text)
    await source.commit(last_positions(items))  # of a connection that is gone
    writing = asyncio.ensure_future(sink.write([("k", 2)]))
    own_mosquitto.start()
    await writing
    await sink.flush()
    # Both come again, as they were not acknowledged, and then what is new.
    again, rest = [], iteration
    await peer.produce([b"3"])
    async with asyncio.timeout(30):
        while len(again) < 3:
            again += await anext(rest)
    assert [item.value for item in again] == [1, 2, 3]
    await until(lambda: source.reconnects)
    assert caplog.text.count(f"{source.name}: lost the server") == 1
    written = set()
    while len(written) < 2:
        written |= set(await peer.written(1))
    assert written == {b"1", b"2"}
    await sink.close()
    await close(source, rest)
    peer.close()


async def test_a_killed_server_loses_no_result_that_was_flushed_late(own_mosquitto):
    peer = MqttPeer(own_mosquitto)
    peer.close()
    session = uuid.uuid4().hex
    peer.make_session(session, f"{peer.topic}/out")
    sink = peer.sink(in_flight=7)
    own_mosquitto.freeze()
    opening = asyncio.ensure_future(sink.write([("k", number) for number in range(50)]))
    own_mosquitto.thaw()
    await asyncio.wait_for(opening, 30)
    own_mosquitto.freeze()
    writing = asyncio.ensure_future(sink.write([("k", number) for number in range(50, 60)]))
    await until(lambda: len(sink._publisher._published) == 7)
    own_mosquitto.kill()
    own_mosquitto.start()
    peer.make_session(session, f"{peer.topic}/out")
    await asyncio.wait_for(writing, 30)
    await sink.flush()
    await sink.close()
    source = connect.mqtt(peer.address, f"{peer.topic}/out", client_id=session)
    iteration, seen = aiter(source), set()
    async with asyncio.timeout(30):
        while not seen.issuperset(range(50, 60)):
            batch = await anext(iteration)
            seen.update(item.value for item in batch)
            await source.commit(last_positions(batch))
    await close(source, iteration)


async def test_a_frozen_server_is_found_by_its_silence(own_mosquitto):
    peer = MqttPeer(own_mosquitto)
    await peer.produce([b"1"])
    source = peer.source(keepalive=1)
    items, iteration = await take(source, 1)
    more = asyncio.ensure_future(anext(iteration))
    own_mosquitto.freeze()
    await until(lambda: not source._source.up.is_set())
    assert not more.done()
    own_mosquitto.thaw()
    assert [item.value for item in await asyncio.wait_for(more, 30)] == [1]
    await until(lambda: source.reconnects >= 1)  # a busy machine may be silent for a second, too
    await close(source, iteration)
    peer.close()


async def test_a_frozen_server_is_unreachable_for_a_first_connection(own_mosquitto):
    own_mosquitto.freeze()
    source = connect.mqtt(f"127.0.0.1:{own_mosquitto.port}", "t", connect_timeout=0.5)
    with pytest.raises(Unreachable, match="no answer within 0.5 s"):
        await take(source, 1)
    await source.close()
    own_mosquitto.thaw()


async def test_a_login_is_checked_and_never_shown(mosquitto, tmp_path):
    address = f"127.0.0.1:{mosquitto.login_port}"
    for login in ({}, {"user": "reader", "password": "hunter3"}):
        source = connect.mqtt(address, "t", **login)
        with pytest.raises(AuthenticationFailed, match=address) as refused:
            await take(source, 1)
        assert "hunter" not in str(refused.value)
        await source.close()
    (tmp_path / "password").write_text("hunter2\n")
    sink = connect.mqtt(address, "allowed", user="reader", password_file=tmp_path / "password")
    await sink.write([("k", 1)])
    await sink.flush()
    with pytest.raises(PermissionDenied, match="forbidden"):
        await sink.write([("k", connect.to(1, topic="forbidden"))])
        await sink.flush()
    assert "hunter" not in repr(sink) + repr(sink._broker)
    await sink.close()


async def test_tls(mosquitto):
    address = f"127.0.0.1:{mosquitto.tls_port}"
    sink = connect.mqtt(address, "t", tls=True)
    with pytest.raises(Unreachable, match="certificate"):
        await sink.write([("k", 1)])
    await sink.close()
    context = ssl.create_default_context(cafile=mosquitto.certificate)
    source = connect.mqtt(address, "tls", tls=context, prefetch=2000)
    _, iteration = await take_started(source)
    sink = connect.mqtt(address, "tls", tls=context)
    await sink.write([("k", "x" * number) for number in range(1000)])
    await sink.flush()
    count = 0
    async with asyncio.timeout(30):
        while count < 1000:
            for item in await anext(iteration):
                assert item.value == "x" * count
                count += 1
    await sink.close()
    await close(source, iteration)


async def test_headers_and_topics_of_results(peer):
    sink = peer.sink()
    topic = f"{peer.topic}/out/other"
    await sink.write([("k", connect.to(1, topic=topic, headers={"trace": "t1"}))])
    await sink.flush()
    (message,) = await peer.messages(1)
    assert (message.topic, message.properties.UserProperty) == (topic, [("trace", "t1")])
    await sink.close()
    wild = connect.mqtt(peer.address, "a/+")
    with pytest.raises(ValueError, match="connect.to"):
        await wild.write([("k", 1)])
    await wild.close()


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ({"topic": "a/+"}, "no wildcards"),
        ({"topic": "é" * 33_000}, "at most 65,535"),
        ({"headers": {"h": b"\xff"}}, "utf-8"),
        ({"headers": {"h": "é" * 33_000}}, "'h' has more than 65,535"),
    ],
)
async def test_of_results_that_no_message_can_carry_none_is_written(peer, address, match):
    sink = peer.sink()
    with pytest.raises(ValueError, match=match):
        await sink.write([("k", 1), ("k", connect.to(2, **address))])
    await sink.write([("k", 3)])
    await sink.flush()
    assert await peer.written(1) == [b"3"]
    await sink.close()


async def test_a_lost_session_acknowledges_nothing_of_the_new_one(own_mosquitto):
    """After a restart without its sessions, the server numbers its packets from the beginning."""
    peer = MqttPeer(own_mosquitto)
    await peer.produce([b"1", b"2"])
    source = peer.source()
    old, iteration = await take(source, 2)
    own_mosquitto.kill()
    (own_mosquitto.folder / "mosquitto.db").unlink()
    own_mosquitto.start()
    await until(lambda: source.reconnects == 1)
    await peer.produce([b"3", b"4"])
    new = []
    async with asyncio.timeout(30):
        while len(new) < 2:
            new += await anext(iteration)
    await source.commit(last_positions(old))
    await close(source, iteration)
    source = peer.source()
    again, iteration = await take(source, 2)
    assert [item.value for item in again] == [3, 4]
    await close(source, iteration)
    peer.close()


async def test_a_lost_session_loses_nothing_that_was_received(own_mosquitto, caplog):
    peer = MqttPeer(own_mosquitto)
    await peer.produce([b"1", b"2"])
    source = peer.source()
    source.pause([peer.topic])
    iteration = aiter(source)
    first = asyncio.ensure_future(anext(iteration))
    await until(lambda: source.lag() == {peer.topic: 2} and source._source.up.is_set())
    own_mosquitto.kill()
    (own_mosquitto.folder / "mosquitto.db").unlink()
    own_mosquitto.start()
    await until(lambda: source.reconnects == 1)
    assert "has not kept the session" in caplog.text
    # The new session has the third message alone, and outlives the next restart.
    await peer.produce([b"3"])
    await until(lambda: source.lag() == {peer.topic: 3})
    own_mosquitto.stop()
    own_mosquitto.start()
    await until(lambda: source.redelivered == 1)
    source.resume([peer.topic])
    assert [item.value for item in await first] == [1, 2, 3]
    assert caplog.text.count("has not kept the session") == 1
    await close(source, iteration)
    peer.close()


async def test_a_connection_that_is_lost_right_behind_the_answer_is_made_again(
    own_mosquitto, monkeypatch
):
    peer = MqttPeer(own_mosquitto)
    subscribe, lost = Link._subscribe, []

    async def subscribe_and_lose(link):
        await subscribe(link)
        if source._source is not None and not lost:
            lost.append(link)
            link.client.socket().shutdown(socket.SHUT_RDWR)
            link._lost(False, "gone")  # as when both are read in one turn of the event loop

    source = peer.source()
    iteration = aiter(source)
    first = asyncio.ensure_future(anext(iteration))
    await until(lambda: source._source is not None and source._source.up.is_set())
    monkeypatch.setattr(Link, "_subscribe", subscribe_and_lose)
    own_mosquitto.stop()
    own_mosquitto.start()
    await until(lambda: source.reconnects == 1)
    assert lost == [source._source]
    await peer.produce([b"1"])
    assert [item.value for item in await first] == [1]
    await close(source, iteration)
    peer.close()


def test_of_url():
    from velo.connect._mqtt import of_url

    url = urlsplit("mqtt://reader:hunt%40er2@[::1]:1234/a/%2B/%23")
    endpoint = of_url(url, {"client_id": "c", "prefetch": "7", "retain": "true"})
    assert repr(endpoint) == "mqtt('::1:1234', 'a/+/#')"
    assert endpoint._broker.password == "hunt@er2"
    assert (endpoint._client_id, endpoint._prefetch, endpoint._publisher._retain) == ("c", 7, True)
    assert of_url(urlsplit("mqtts://host/t"), {})._broker.port == 8883
    with pytest.raises(ValueError, match="no setting `colour`; it has client_id, "):
        of_url(url, {"colour": "red"})
    with pytest.raises(ValueError, match="prefetch"):
        of_url(url, {"prefetch": "many"})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prefetch": 0}, "prefetch"),
        ({"start": "earliest"}, "history"),
        ({"in_flight": 0}, "in_flight"),
        ({"password": "a", "password_file": "b"}, "not both"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.mqtt("localhost", "t", **settings)


def test_a_server_with_a_login_in_it_is_refused_without_showing_it():
    with pytest.raises(ValueError, match="as settings") as refused:
        connect.mqtt("reader:hunter2@localhost", "t")
    assert "hunter2" not in str(refused.value)


@pytest.fixture
def own_mosquitto(tmp_path):
    """A server that the test may stop."""
    from servers.mosquitto import Mosquitto

    server = Mosquitto(tmp_path / "mosquitto").start()
    yield server
    server.kill()
