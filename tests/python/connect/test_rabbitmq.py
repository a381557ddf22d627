"""The connector of RabbitMQ, on a server of its own."""

import asyncio
import ssl
import uuid
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from conformance import Peer, SinkConformance, SourceConformance, close, last_positions, take

from helpers import until
from servers.server import free_port
from velo import connect
from velo.connect.errors import (
    AuthenticationFailed,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
)

aio_pika = pytest.importorskip("aio_pika")


async def client_of(server, login="guest", password="guest"):
    return await aio_pika.connect(
        host="127.0.0.1", port=server.port, login=login, password=password
    )


class RabbitPeer(Peer):
    """A durable queue, and one more that the sink publishes to."""

    carries = frozenset({"headers", "timestamp"})

    def __init__(self, server):
        self.server = server
        self.address = f"127.0.0.1:{server.port}"
        self.queue = uuid.uuid4().hex
        self.out = f"{self.queue}-out"

    async def open(self):
        self.connection = await client_of(self.server)
        self.channel = await self.connection.channel()
        for name in (self.queue, self.out):
            await self.channel.declare_queue(name, durable=True)
        return self

    async def close(self):
        await self.connection.close()

    async def produce(self, values, key=None, headers=(), queue=None):
        for value in values:
            message = aio_pika.Message(
                value,
                headers={name: value.decode() for name, value in headers},
                delivery_mode=2,
                timestamp=1_800_000_000,
            )
            await self.channel.default_exchange.publish(message, queue or self.queue)

    async def messages(self, count, name=None):
        queue = await self.channel.declare_queue(name or self.out, passive=True)
        got = []
        async with asyncio.timeout(30):
            async with queue.iterator() as messages:
                async for message in messages:
                    await message.ack()
                    got.append(message)
                    if len(got) == count:
                        return got

    async def written(self, count):
        return [message.body for message in await self.messages(count)]

    async def length(self):
        channel = await self.connection.channel()
        count = (await channel.declare_queue(self.queue, passive=True)).declaration_result
        await channel.close()
        return count.message_count

    def source(self, **settings):
        return connect.rabbitmq(self.address, self.queue, **settings)

    def sink(self, **settings):
        return connect.rabbitmq(self.address, self.out, **settings)

    def source_of_nothing(self):
        return connect.rabbitmq(f"127.0.0.1:{free_port()}", "q")


@pytest.fixture
async def peer(rabbitmq):
    peer = await RabbitPeer(rabbitmq).open()
    yield peer
    await peer.close()


class TestRabbitMQ(SourceConformance, SinkConformance):
    pass


async def test_acknowledging_some_brings_the_others_again_marked_as_redelivered(peer):
    await peer.produce([b"%d" % number for number in range(6)])
    source = peer.source()
    items, iteration = await take(source, 6)
    await source.commit(last_positions(items[:2]))
    await source.commit({"another queue": 5})
    await close(source, iteration)
    source = peer.source()
    again, iteration = await take(source, 4)
    assert [item.value for item in again] == [2, 3, 4, 5]
    assert source.redelivered == 4
    await source.commit(last_positions(again))
    await close(source, iteration)
    assert await peer.length() == 0


async def test_prefetch_bounds_what_is_unacknowledged(peer):
    await peer.produce([b"%d" % number for number in range(20)])
    source = peer.source(prefetch=5)
    items, iteration = await take(source, 5)
    assert await peer.length() == 15
    assert source.lag() == {peer.queue: 0}
    await source.commit(last_positions(items))
    more, _ = await asyncio.wait_for(anext(iteration), 30), None
    assert more[0].value == 5
    await close(source, iteration)


async def test_until_end_finishes_with_what_lay_there(peer):
    await peer.produce([b"%d" % number for number in range(700)])
    source = peer.source(until="end", prefetch=100)
    seen = []
    async with asyncio.timeout(30):
        async for batch in source:
            if not seen:
                await peer.produce([b"-1"])  # too late
            seen += [item.value for item in batch]
            await source.commit(last_positions(batch))
    assert seen == list(range(700))
    await source.close()
    empty = connect.rabbitmq(peer.address, peer.out, until="end")
    assert [batch async for batch in empty] == []
    await empty.close()


async def test_until_end_does_not_wait_for_what_another_consumer_took(peer):
    await peer.produce([b"%d" % number for number in range(10)])
    source = peer.source(until="end", prefetch=5)
    items, iteration = await take(source, 5)
    await peer.messages(5, peer.queue)
    await source.commit(last_positions(items))
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(iteration), 30)
    await source.close()


async def test_until_end_reads_all_of_it_after_a_lost_connection(peer):
    async def ack(**_):
        raise ConnectionError("the connection was lost")

    await peer.produce([b"%d" % number for number in range(6)])
    source = peer.source(until="end", prefetch=2)
    items, iteration = await take(source, 2)
    # The first acknowledgement does not arrive, and the second is not sent.
    given = source._unacknowledged[peer.queue]
    given[0] = (given[0][0], SimpleNamespace(ack=ack))
    await source.commit(last_positions(items[:1]))
    seen = []
    async with asyncio.timeout(30):
        async for batch in iteration:
            seen += [item.value for item in batch]
            await source.commit(last_positions(batch))
    assert seen == list(range(6))
    assert source.reconnects == 1
    await source.close()


async def test_each_queue_is_a_partition_and_pauses_alone(peer):
    second = peer.out
    source = connect.rabbitmq(peer.address, [peer.queue, second])
    await peer.produce([b"1"])
    (item,), iteration = await take(source, 1)
    assert (item.partition, item.topic, item.key) == (peer.queue,) * 3
    source.pause([peer.queue])
    await peer.produce([b"2"])
    await until(lambda: source.lag()[peer.queue] == 1)
    await peer.produce([b"3"], queue=second)
    (other,) = await anext(iteration)
    assert (other.value, other.partition) == (3, second)
    source.resume([peer.queue])
    assert [item.value for item in await anext(iteration)] == [2]
    await source.commit({second: other.position})
    await close(source, iteration)
    assert await peer.length() == 2


async def test_stop_ends_the_iteration(peer):
    source = peer.source()
    iteration = aiter(source)
    waiting = asyncio.ensure_future(anext(iteration))
    await until(lambda: source._source is not None and source._source.up.is_set())
    source.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting
    await source.close()


async def test_a_missing_queue_is_named_and_not_created(peer):
    source = connect.rabbitmq(peer.address, "missing")
    with pytest.raises(NoSuchTopic, match="missing"):
        await take(source, 1)
    await source.close()
    sink = connect.rabbitmq(peer.address, "missing")
    with pytest.raises(NoSuchTopic, match="'missing': create the queue"):
        await sink.write([("k", 1)])
        await sink.flush()
    with pytest.raises(NoSuchTopic):
        await sink.flush()
    await sink.close()
    sink = connect.rabbitmq(peer.address, exchange="missing")
    with pytest.raises(NoSuchTopic, match="missing"):
        await sink.write([("k", 1)])
    await sink.close()


async def test_declare_creates_a_durable_queue(peer):
    name = uuid.uuid4().hex
    both = connect.rabbitmq(peer.address, name, declare=True)
    await both.write([("k", 1)])
    await both.flush()
    items, iteration = await take(both, 1)
    assert items[0].value == 1
    await close(both, iteration)
    await peer.channel.declare_queue(name, durable=True)  # an error, were it another kind


async def test_a_queue_that_is_deleted_ends_the_source_with_an_error(peer):
    source = peer.source()
    iteration = aiter(source)
    waiting = asyncio.ensure_future(anext(iteration))
    await until(lambda: source._source is not None and source._source.up.is_set())
    await peer.channel.queue_delete(peer.queue)
    with pytest.raises(NoSuchTopic, match="was deleted"):
        await asyncio.wait_for(waiting, 30)
    await source.close()


async def test_results_go_to_an_exchange_by_their_key(peer):
    exchange = await peer.channel.declare_exchange(uuid.uuid4().hex, aio_pika.ExchangeType.DIRECT)
    queue = await peer.channel.declare_queue(peer.out, passive=True)
    for key in ("red", "blue"):
        await queue.bind(exchange, key)
    sink = connect.rabbitmq(peer.address, exchange=exchange.name)
    await sink.write([("red", 1), ("k", connect.to(2, topic="blue", headers={"h": b"\xff"}))])
    await sink.flush()
    one, two = await peer.messages(2)
    assert (one.body, one.routing_key, one.delivery_mode) == (b"1", "red", 2)
    assert (two.body, two.routing_key, two.headers) == (b"2", "blue", {"h": b"\xff"})
    with pytest.raises(NoSuchTopic, match="green"):
        await sink.write([("green", 1)])
        await sink.flush()
    await sink.close()


@pytest.mark.parametrize("address", [{"topic": "é" * 200}, {"headers": {"\ud800": "v"}}])
async def test_of_results_that_no_message_can_carry_none_is_written(peer, address):
    sink = peer.sink()
    with pytest.raises(ValueError, match="longer than 255 bytes|surrogates"):
        await sink.write([("k", 1), ("k", connect.to(2, **address))])
    await sink.write([("k", 3)])
    await sink.flush()
    assert await peer.written(1) == [b"3"]
    await sink.close()


async def test_unconfirmed_results_are_bounded(peer):
    sink = peer.sink(in_flight=3)
    peak = 0

    async def write():
        await sink.write([("k", number) for number in range(200)])

    writing = asyncio.ensure_future(write())
    while not writing.done():
        peak = max(peak, len(sink._publisher._unconfirmed))
        await asyncio.sleep(0)
    await writing
    await sink.flush()
    assert peak == 3
    assert await peer.written(200) == [b"%d" % number for number in range(200)]
    await sink.close()


async def test_a_login_is_checked_and_never_shown(peer, rabbitmq, tmp_path):
    await asyncio.to_thread(rabbitmq.ctl, "add_user", rabbitmq.user, rabbitmq.password)
    await asyncio.to_thread(
        rabbitmq.ctl, "set_permissions", rabbitmq.user, "", "^$", peer.queue + ".*"
    )
    source = connect.rabbitmq(peer.address, peer.queue, user="reader", password="hunter3")
    with pytest.raises(AuthenticationFailed, match=f"{peer.address} refuses .*'reader'") as refused:
        await take(source, 1)
    assert "hunter" not in str(refused.value)
    await source.close()
    (tmp_path / "password").write_text("hunter2\n")
    login = {"user": "reader", "password_file": tmp_path / "password"}
    source = connect.rabbitmq(peer.address, peer.queue, **login)
    await peer.produce([b"1"])
    items, iteration = await take(source, 1)
    assert items[0].value == 1
    assert "hunter" not in repr(source) + repr(source._server)
    await close(source, iteration)
    sink = connect.rabbitmq(peer.address, peer.out, **login)
    with pytest.raises(PermissionDenied):
        await sink.write([("k", 1)])
        await sink.flush()
    await sink.close()
    source = connect.rabbitmq(peer.address, "q", vhost="elsewhere")
    with pytest.raises(NoSuchTopic, match="virtual host 'elsewhere'"):
        await take(source, 1)
    await source.close()


async def test_tls(peer, rabbitmq):
    address = f"127.0.0.1:{rabbitmq.tls_port}"
    sink = connect.rabbitmq(address, peer.out, tls=True)
    with pytest.raises(Unreachable, match="certificate"):
        await sink.write([("k", 1)])
    await sink.close()
    context = ssl.create_default_context(cafile=rabbitmq.certificate)
    sink = connect.rabbitmq(address, peer.out, tls=context)
    await sink.write([("k", 1)])
    await sink.flush()
    assert await peer.written(1) == [b"1"]
    await sink.close()


async def test_a_frozen_server_is_found_by_its_silence(peer, rabbitmq):
    await peer.produce([b"1"])
    source = peer.source(heartbeat=1)
    items, iteration = await take(source, 1)
    more = asyncio.ensure_future(anext(iteration))
    rabbitmq.freeze()
    try:
        await until(lambda: not source._source.up.is_set())
        assert not more.done()
        first = connect.rabbitmq(peer.address, peer.queue, connect_timeout=0.3)
        with pytest.raises(Unreachable, match=r"no answer within 0\.3 s"):
            await take(first, 1)
        await first.close()
    finally:
        rabbitmq.thaw()
    assert [item.value for item in await asyncio.wait_for(more, 60)] == [1]
    await until(lambda: source.reconnects >= 1)  # a busy machine may be silent for a second, too
    await source.commit(last_positions(items))  # of the connection that was lost: nothing
    await close(source, iteration)
    assert await peer.length() == 1


async def test_the_server_is_killed_and_starts_again_under_source_and_sink(peer, rabbitmq, caplog):
    await peer.produce([b"1", b"2", b"3"])
    source, sink = peer.source(), peer.sink()
    items, iteration = await take(source, 3)
    await source.commit(last_positions(items[:1]))
    await sink.write([("k", 1)])
    await sink.flush()
    await asyncio.to_thread(rabbitmq.sync)
    rabbitmq.kill()
    await until(lambda: caplog.text.count("lost the server") == 2)
    await source.commit(last_positions(items))  # of a connection that is gone
    await sink.write([("k", 2), ("k", 3)])
    await asyncio.to_thread(rabbitmq.start)
    await asyncio.wait_for(sink.flush(), 60)
    async with asyncio.timeout(60):
        again = list(await anext(iteration))
        while again[-1].value != 3:
            again += await anext(iteration)
    assert [item.value for item in again][-2:] == [2, 3]
    assert source.redelivered >= 2
    assert source.reconnects == sink.reconnects == 1
    await source.commit(last_positions(again))
    await sink.close()
    await close(source, iteration)
    after = RabbitPeer(rabbitmq)
    after.connection = await client_of(rabbitmq)
    after.channel = await after.connection.channel()
    after.queue, after.out = peer.queue, peer.out
    assert await after.length() == 0
    assert await after.written(3) == [b"1", b"2", b"3"]
    await after.close()


def test_of_url():
    from velo.connect._rabbitmq import of_url

    url = urlsplit("amqp://reader:hunt%40er2@host:1234/a%2Fb")
    endpoint = of_url(url, {"vhost": "v", "prefetch": "7", "declare": "yes"})
    assert repr(endpoint) == "rabbitmq('host:1234', 'a/b')"
    assert (endpoint._server.password, endpoint._server.vhost) == ("hunt@er2", "v")
    assert (endpoint._prefetch, endpoint._declare) == (7, True)
    assert of_url(urlsplit("amqps://host/q"), {})._server.port == 5671
    with pytest.raises(ValueError, match="no setting `colour`; it has connect_timeout, "):
        of_url(url, {"colour": "red"})
    with pytest.raises(ValueError, match="neither"):
        of_url(url, {"declare": "perhaps"})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prefetch": 0}, "prefetch"),
        ({"until": 7}, "until"),
        ({"password": "a", "password_file": "b"}, "not both"),
        ({"queue": None}, "exchange"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.rabbitmq("localhost", **{"queue": "q", **settings})
