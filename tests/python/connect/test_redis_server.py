"""A Redis server that goes away, refuses a user, or wants TLS; the addresses of servers."""

import asyncio
import contextlib
import json
import logging
from urllib.parse import urlsplit

import pytest
from conformance import close, last_positions, take
from redis_peer import RedisPeer, close_clients, read_all

from helpers import HANG, until
from killed import move, move_and_kill
from servers.certificates import certificate
from servers.redis import Redis
from velo import connect
from velo.connect import _redis
from velo.connect._redis.link import Link
from velo.connect.errors import (
    AuthenticationFailed,
    PermissionDenied,
    PositionLost,
    Unreachable,
)


@pytest.fixture(autouse=True)
def _close_clients():
    yield
    close_clients()


@pytest.fixture
def peer(redis):
    return RedisPeer(redis)


@pytest.fixture
def own(tmp_path):
    """A server that the test may stop and freeze."""
    server = Redis(tmp_path / "redis").start()
    yield server
    if server.process is not None:
        server.thaw()
    server.stop()


@pytest.mark.parametrize("group", ["g", None])
async def test_a_restart_of_the_server_loses_nothing(own, group, caplog):
    caplog.set_level(logging.WARNING, "velo.connect")
    peer = RedisPeer(own, group)
    await peer.produce([b"%d" % number for number in range(10)])
    source = peer.source(batch=5)
    items, iteration = await take(source, 5)
    own.kill()
    reading = asyncio.ensure_future(take_values(iteration, 10))
    await until(lambda: "lost the server" in caplog.text)
    await asyncio.to_thread(own.start)
    await until(lambda: source.reconnects == 1)
    await peer.produce([b"%d" % number for number in range(10, 15)])
    values = await reading
    assert [item.value for item in items] + [item.value for item in values] == list(range(15))
    await source.commit(last_positions(values))
    if group:
        assert peer.pending() == 0
    assert caplog.text.count("lost the server") == 1
    assert str(own.port) in caplog.text
    await close(source, iteration)


async def take_values(iteration, count):
    items = []
    async with asyncio.timeout(HANG):
        while len(items) < count:
            items += await anext(iteration)
    return items


@pytest.mark.parametrize("group", ["g", None])
async def test_a_server_that_freezes_is_waited_for(own, group):
    peer = RedisPeer(own, group)
    await peer.produce([b"1"])
    source = peer.source(reply_timeout=0.3)
    _, iteration = await take(source, 1)
    own.freeze()
    reading = asyncio.ensure_future(take_values(iteration, 1))
    await until(lambda: source._link.outages._attempts > 0)
    own.thaw()
    await asyncio.to_thread(peer.client.xadd, peer.stream, {"value": 2})
    assert [item.value for item in await reading] == [2]
    await close(source, iteration)


async def test_entries_whose_reply_was_lost_are_asked_for_again(own):
    """The server has delivered them, and the connection breaks before they arrive."""
    peer = RedisPeer(own)
    source = peer.source(reply_timeout=HANG)
    iteration = aiter(source)
    await anext(iteration)
    assert await anext(iteration) == []
    # Another connection under the same name takes the entry, as a lost reply does.
    await peer.produce([b"1"])
    peer.client.xreadgroup(peer.group, "c", {peer.stream: ">"})
    peer.client.client_kill_filter(_type="normal", skipme=True)
    assert [item.value for item in await take_values(iteration, 1)] == [1]
    await close(source, iteration)


async def test_a_server_that_comes_back_without_its_data_is_an_error(tmp_path):
    server = Redis(tmp_path, "--appendonly", "no").start()
    try:
        for group in ("g", None):
            peer = RedisPeer(server, group)
            await peer.produce([b"1"])
            source = peer.source()
            _, iteration = await take(source, 1)
            server.kill()
            await asyncio.to_thread(server.start)
            with pytest.raises(PositionLost):
                await take_values(iteration, 1)
            await close(source, iteration)
    finally:
        server.stop()


@pytest.mark.parametrize("waiting", [True, False])
async def test_a_group_whose_stream_is_gone_is_an_error_whichever_command_finds_it(redis, waiting):
    peer = RedisPeer(redis, "g")
    await peer.produce([b"1"])
    source = peer.source()
    items, iteration = await take(source, 1)
    if not waiting:
        await source.commit(last_positions(items))
    peer.client.delete(peer.stream)
    with pytest.raises(PositionLost, match="the group is not there any more"):
        await source._reader.tend()
    await close(source, iteration)


async def test_a_program_that_is_killed_loses_nothing(redis):
    """Every result is there, and each key's results come in order, apart from those doubled."""
    peer, out = RedisPeer(redis), RedisPeer(redis)
    source = f"{redis.url}/{peer.stream}?group=g&consumer=c&batch=100"
    sink = f"{redis.url}/{out.stream}?batch=50"

    def produce(numbers):
        with peer.client.pipeline(transaction=False) as pipe:
            for number in numbers:
                pipe.xadd(peer.stream, {"value": json.dumps({"k": number % 7, "n": number})})
            pipe.execute()

    async def count():
        return out.client.xlen(out.stream)

    # Each run has records to move, however late the one before it was killed.
    produce(range(3000))
    await move_and_kill(source, sink, count, 300)
    produce(range(3000, 6000))
    await move_and_kill(source, sink, count, await count() + 300)
    produce(range(6000, 10_000))
    await move(f"{source}&until=end", sink)
    results = [json.loads(value) for value in await out.written(10_000)]
    for key in range(7):
        numbers = list(dict.fromkeys(result["n"] for result in results if result["k"] == key))
        assert numbers == list(range(key, 10_000, 7))
    assert peer.pending() == 0


async def test_a_sink_waits_for_the_server_and_gives_up_in_time(own, caplog):
    peer = RedisPeer(own)
    sink = peer.sink(write_timeout=0.2)
    await sink.write([("k", 1)])
    await sink.flush()
    own.kill()
    await sink.write([("k", 2)])
    with pytest.raises(Unreachable, match=str(own.port)):
        await sink.flush()
    await asyncio.to_thread(own.start)
    await sink.flush()
    assert await peer.written(2) == [b"1", b"2"]
    await sink.close()


@contextlib.asynccontextmanager
async def leading(ports):
    """The port of an address whose new connections go to the last one of `ports`."""

    async def copy(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader, writer):
        further = await asyncio.open_connection("127.0.0.1", ports[-1])
        await asyncio.gather(copy(reader, further[1]), copy(further[0], writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_failover_is_waited_for_by_source_and_sink(own, tmp_path):
    """The primary takes no writes any more, and then the address leads to the new one."""
    new = Redis(tmp_path / "new").start()
    ports, peer, successor = [own.port], RedisPeer(own), RedisPeer(new)
    try:
        async with leading(ports) as port:
            url = f"redis://127.0.0.1:{port}"
            source = connect.redis(url, peer.stream, group="g")
            sink = connect.redis(url, peer.stream)
            await sink.write([("k", 1)])
            await sink.flush()
            items, iteration = await take(source, 1)
            await source.commit(last_positions(items))
            reading = asyncio.ensure_future(take_values(iteration, 2))
            successor.client.replicaof("127.0.0.1", own.port)
            await until(lambda: successor.client.xlen(peer.stream) == 1)
            successor.client.replicaof("NO", "ONE")
            peer.client.replicaof("127.0.0.1", new.port)
            await sink.write([("k", 2), ("k", 3)])
            flushing = asyncio.ensure_future(sink.flush())
            await until(lambda: sink._link.outages._attempts and source._link.outages._attempts)
            assert not flushing.done()
            ports.append(new.port)
            await asyncio.wait_for(flushing, HANG)
            items = await reading
            assert [item.value for item in items] == [2, 3]
            await source.commit(last_positions(items))
            entries = successor.client.xrange(peer.stream)
            assert [fields[b"value"] for _, fields in entries] == [b"1", b"2", b"3"]
            assert successor.client.xpending(peer.stream, "g")["pending"] == 0
            await sink.close()
            await close(source, iteration)
    finally:
        new.stop()


async def test_a_sink_gives_up_in_time_on_a_server_that_stays_a_replica(own):
    peer = RedisPeer(own)
    sink = peer.sink(write_timeout=0.2)
    await sink.write([("k", 1)])
    await sink.flush()
    peer.client.replicaof("127.0.0.1", 1)
    await sink.write([("k", 2)])
    with pytest.raises(Unreachable, match="read only replica"):
        await sink.flush()
    peer.client.replicaof("NO", "ONE")
    await sink.flush()
    assert await peer.written(2) == [b"1", b"2"]
    await sink.close()


# Users, TLS, addresses.


async def test_a_wrong_password_is_named_and_not_shown(tmp_path, monkeypatch):
    server = Redis(tmp_path, "--requirepass", "hunter2")
    server.client = lambda: _with_password(server)
    server.start()
    address = f"127.0.0.1:{server.port}"
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    try:
        for settings in ({}, {"password": "hunter3"}, {"user": "bob", "password": "hunter3"}):
            source = connect.redis(address, "s", **settings)
            with pytest.raises(AuthenticationFailed, match=address) as caught:
                await anext(aiter(source))
            assert "hunter" not in str(caught.value)
            await source.close()
        monkeypatch.setenv("REDISCLI_AUTH", "hunter2")
        for server_url, settings in (
            (address, {"password_file": str(file)}),
            (f"redis://:hunter2@{address}", {}),
            (address, {}),
        ):
            source = connect.redis(server_url, "s", until="end", **settings)
            assert "hunter2" not in f"{source!r} {source.name}"
            assert await read_all(source) == []
    finally:
        server.stop()


def _with_password(server):
    import redis

    return redis.Redis(port=server.port, password="hunter2", protocol=2)


async def test_a_user_without_the_right_is_refused(redis, peer):
    peer.client.acl_setuser(
        "reader", enabled=True, passwords="+x", keys=["other*"], commands=["+@all"]
    )
    for settings in ({}, {"group": "g"}):
        source = connect.redis(redis.url, peer.stream, user="reader", password="x", **settings)
        with pytest.raises(PermissionDenied, match="`reader`"):
            await anext(aiter(source))
        await source.close()
    sink = connect.redis(redis.url, peer.stream, user="reader", password="x")
    await sink.write([("k", 1)])
    with pytest.raises(PermissionDenied, match="`reader`"):
        await sink.flush()
    await sink.close()


async def test_the_address_may_name_the_user(redis, peer):
    peer.client.acl_setuser(
        "carol", enabled=True, reset=True, passwords="+x", keys=[peer.stream], commands=["+@all"]
    )
    await peer.produce([b"1"])
    address = redis.url.removeprefix("redis://")
    for url, settings in (
        (f"redis://carol:x@{address}", {}),
        (f"redis://carol@{address}", {"password": "x"}),
        (f"redis://bob:y@{address}", {"user": "carol", "password": "x"}),
    ):
        assert await read_all(connect.redis(url, peer.stream, until="end", **settings)) == [1]
    with pytest.raises(AuthenticationFailed, match="`carol`"):
        await read_all(connect.redis(f"redis://carol:y@{address}", peer.stream))


async def test_the_rights_that_the_guide_names_are_enough(redis, peer):
    commands = ["+@stream", "+multi", "+exec"]
    peer.client.acl_setuser(
        "fraud", enabled=True, reset=True, passwords="+x", keys=[peer.stream], commands=commands
    )
    await peer.produce([b"1"])
    for settings in ({}, {"group": "g"}):
        endpoint = connect.redis(
            redis.url, peer.stream, user="fraud", password="x", claim_after=0.1, **settings
        )
        items, iteration = await take(endpoint, 1)
        await until(endpoint.lag)
        await endpoint.commit(last_positions(items))
        await endpoint.write([("k", 2)])
        await endpoint.flush()
        await close(endpoint, iteration)
        peer.client.xtrim(peer.stream, maxlen=1)


def tls_server(folder):
    cert, key = certificate(folder)
    server = Redis(folder / "redis")
    server.options = (
        "--port", "0", "--tls-port", str(server.port), "--tls-cert-file", str(cert),
        "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no",
    )  # fmt: skip
    server.probe = lambda: Redis.__base__.probe(server)
    return server.start(), cert


async def test_a_server_that_freezes_behind_tls_is_waited_for(tmp_path):
    """Also where other connections to it are idle: to end one would wait for its answer."""
    server, cert = tls_server(tmp_path)
    link = Link(
        f"rediss://127.0.0.1:{server.port}",
        "redis s",
        tls=True,
        connect_timeout=HANG,
        reply_timeout=1.0,
        ssl_ca_certs=str(cert),
    )
    try:
        await asyncio.gather(*(link.command("BLPOP", f"none {n}", 0.1) for n in range(3)))
        server.freeze()
        asked = asyncio.ensure_future(link.command("PING", limit=HANG))
        await until(lambda: link.outages._attempts > 1 or asked.done())
        server.thaw()
        assert await asked in (b"PONG", True)
    finally:
        await link.close()
        server.stop()


async def test_tls_checks_the_certificate(tmp_path):
    server, cert = tls_server(tmp_path)
    try:
        url = f"rediss://127.0.0.1:{server.port}"
        assert await read_all(connect.redis(url, "s", until="end", tls_ca=str(cert))) == []
        for address, settings in ((url, {}), (url.replace("rediss", "redis"), {})):
            source = connect.redis(address, "s", connect_timeout=0.3, **settings)
            with pytest.raises(Unreachable, match="TLS"):
                await anext(aiter(source))
            await source.close()
    finally:
        server.stop()


async def test_a_url_has_the_settings(redis, peer):
    await peer.produce([b"1"])
    url = f"{redis.url}/{peer.stream}?group=g&start=earliest&until=end"
    parts = urlsplit(url)
    source = _redis.of_url(parts, {"group": "g", "start": "earliest", "until": "end"})
    assert await read_all(source) == [1]
    assert peer.pending() == 1
    with pytest.raises(ValueError, match="claim_after"):
        _redis.of_url(parts, {"grup": "g"})
    with pytest.raises(ValueError, match="name the stream"):
        _redis.of_url(urlsplit(redis.url), {})
    other = _redis.of_url(urlsplit("redis://me:hunter2@h:1/a,b"), {"start": "5-1", "db": "2"})
    assert other.name == "redis a, b"
    assert "hunter2" not in repr(other)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": "yesterday"}, "start='yesterday'"),
        ({"until": "tomorrow"}, "until='tomorrow'"),
        ({"claim_after": 0}, "claim_after"),
        ({"batch": 0}, "batch"),
        ({"decode": "yaml"}, "decode='yaml'"),
        ({"password": "a", "password_file": "b"}, "not both"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.redis("redis://h", "s", **settings)


def test_the_name_stays_a_function():
    assert connect.redis is connect.redis
    assert callable(connect.redis)
