"""A NATS server that goes away, refuses a user, or wants TLS; the addresses of servers."""

import asyncio
import contextlib
import json
import logging
from urllib.parse import urlsplit

import pytest
from conformance import close, last_positions, take
from nats_peer import NatsPeer, read_all, take_more, until, values_of

from helpers import HANG
from killed import move, move_and_kill
from servers.certificates import certificate
from servers.nats import Nats
from velo import connect
from velo.connect import _nats
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    PermissionDenied,
    PositionLost,
    Unreachable,
)


@pytest.fixture
async def peer(nats):
    peer = await NatsPeer(nats).open()
    yield peer
    await peer.close()


@pytest.fixture
async def ordered(nats):
    peer = await NatsPeer(nats, durable=None).open()
    yield peer
    await peer.close()


@pytest.fixture(params=["durable", "ordered"])
def either(request):
    return request.getfixturevalue({"durable": "peer", "ordered": "ordered"}[request.param])


@pytest.fixture
def own(tmp_path):
    """A server that the test may stop and freeze."""
    server = Nats(tmp_path / "nats").start()
    yield server
    if server.process is not None:
        server.thaw()
    server.stop()


@pytest.mark.parametrize("durable", ["d", None])
async def test_a_restart_of_the_server_loses_nothing(own, durable, caplog):
    caplog.set_level(logging.WARNING, "velo.connect")
    peer = await NatsPeer(own, durable).open()
    await peer.produce([b"%d" % number for number in range(10)])
    source = peer.source(batch=5, ack_wait=2.0)
    items, iteration = await take(source, 5)
    await asyncio.to_thread(own.kill)
    reading = asyncio.ensure_future(take_more(iteration, 10))

    async def lost():
        return "lost the server" in caplog.text

    await until(lost)
    await asyncio.to_thread(own.start)
    await until_connected(peer)
    for number in range(10, 15):
        await peer.js.publish(peer.subject, b"%d" % number)
    more = await reading
    assert sorted(values_of(items + more)) == list(range(15))
    assert source.reconnects == 1
    await source.commit(last_positions(items + more))
    if durable:
        assert await peer.pending() == 0
    assert caplog.text.count("lost the server") == 1
    assert str(own.port) in caplog.text
    await close(source, iteration)
    await peer.close()


async def until_connected(peer):
    async def answered():
        with contextlib.suppress(Exception):
            await peer.js.stream_info(peer.stream)
            return True

    await until(answered)


@pytest.mark.parametrize("durable", ["d", None])
async def test_a_server_that_freezes_is_waited_for(own, durable):
    peer = await NatsPeer(own, durable).open()
    await peer.produce([b"1"])
    source = peer.source(keepalive=0.1, ack_wait=2.0)
    _, iteration = await take(source, 1)
    own.freeze()
    reading = asyncio.ensure_future(take_more(iteration, 1))

    async def lost():
        return source._link.outages._attempts > 0

    await until(lost)
    own.thaw()
    await until_connected(peer)
    await peer.js.publish(peer.subject, b"2")
    assert values_of(await reading) == [2]
    await close(source, iteration)
    await peer.close()


async def test_a_stream_that_is_deleted_is_an_error(either):
    await either.produce([b"1"])
    source = either.source(ack_wait=0.4)
    _, iteration = await take(source, 1)
    await either.js.delete_stream(either.stream)
    with pytest.raises(PositionLost, match="deleted"):
        await take_more(iteration, 1)
    await close(source, iteration)


async def test_a_program_that_is_killed_loses_nothing(nats):
    """Every result is there, and each key's results come in order, apart from those doubled."""
    peer, out = await NatsPeer(nats).open(), await NatsPeer(nats).open()
    source = f"{nats.url}/{peer.subject}?durable=d&batch=100&ack_wait=1"
    sink = f"{nats.url}/{out.subject}?in_flight=50"

    async def produce(numbers):
        await peer.produce([b'{"k":%d,"n":%d}' % (number % 7, number) for number in numbers])

    async def count():
        return (await out.js.stream_info(out.stream)).state.messages

    # Each run has records to move, however late the one before it was killed.
    await produce(range(3000))
    await move_and_kill(source, sink, count, 300)
    await produce(range(3000, 6000))
    await move_and_kill(source, sink, count, await count() + 300)
    await produce(range(6000, 10_000))
    await move(f"{source}&until=end", sink)
    numbers = [json.loads(value)["n"] for value in await out.written(await count())]
    assert set(numbers) == set(range(10_000))
    assert await peer.pending() == 0
    await peer.close()
    await out.close()


async def test_a_sink_publishes_again_after_a_restart_without_doubles(own):
    peer = await NatsPeer(own).open()
    sink = peer.sink()
    await sink.write([("k", 0)])
    await sink.flush()
    own.freeze()  # what is written now has no answer
    writing = asyncio.ensure_future(sink.write([("k", number) for number in range(1, 100)]))
    await writing
    own.thaw()
    await asyncio.to_thread(own.kill)
    await asyncio.to_thread(own.start)
    await sink.write([("k", 100)])
    await sink.flush()
    await until_connected(peer)
    assert await peer.written(101) == [b"%d" % number for number in range(101)]
    await sink.close()
    await peer.close()


async def test_a_sink_gives_up_in_time_and_keeps_its_results(own):
    peer = await NatsPeer(own).open()
    sink = peer.sink(write_timeout=0.3)
    await sink.write([("k", 1)])
    await sink.flush()
    await asyncio.to_thread(own.kill)
    await sink.write([("k", 2)])
    with pytest.raises(Unreachable, match=str(own.port)):
        await sink.flush()
    await asyncio.to_thread(own.start)
    await until_connected(peer)
    async with asyncio.timeout(HANG):
        while True:
            with contextlib.suppress(Unreachable):
                await sink.flush()
                break
    assert await peer.written(2) == [b"1", b"2"]
    await sink.close()
    await peer.close()


# Users, TLS, addresses.

USERS = """
authorization {
  users: [
    { user: bob, password: hunter2 }
    { user: eve, password: x, permissions: { publish: "_INBOX.>", subscribe: "_INBOX.>" } }
  ]
}
"""


async def test_a_wrong_password_is_named_and_not_shown(tmp_path, monkeypatch):
    server = Nats(tmp_path / "nats", USERS).start()
    address = f"127.0.0.1:{server.port}"
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    core = {"jetstream": False, "until": "end"}
    try:
        for settings in ({}, {"user": "bob", "password": "hunter3"}, {"token": "hunter3"}):
            source = connect.nats(address, "s", **settings)
            with pytest.raises(AuthenticationFailed, match=address) as caught:
                await anext(aiter(source))
            assert "hunter" not in str(caught.value)
            await source.close()
        for url, settings in (
            (address, {"user": "bob", "password_file": str(file)}),
            (f"nats://bob:hunter2@{address}", {}),
        ):
            source = connect.nats(url, "s", **core, **settings)
            assert "hunter2" not in f"{source!r} {source.name}"
            assert await read_all(source) == []
        monkeypatch.setenv("NATS_USER", "bob")
        monkeypatch.setenv("NATS_PASSWORD", "hunter2")
        assert await read_all(connect.nats(address, "s", **core)) == []
    finally:
        server.stop()


async def test_a_user_without_the_right_is_refused(tmp_path):
    server = Nats(tmp_path / "nats", USERS).start()
    login = {"user": "eve", "password": "x"}
    try:
        for settings in ({"durable": "d"}, {"jetstream": False}):
            source = connect.nats(server.url, "s", **login, **settings)
            with pytest.raises(PermissionDenied, match="`eve`"):
                iteration = aiter(source)
                while True:
                    await anext(iteration)
            await source.close()
        sink = connect.nats(server.url, "s", **login)
        await sink.write([("k", 1)])
        with pytest.raises(PermissionDenied, match="`eve`"):
            await sink.flush()
        await sink.close()
    finally:
        server.stop()


async def test_a_password_that_is_no_longer_good_is_an_error(tmp_path):
    server = Nats(tmp_path / "nats", USERS).start()
    try:
        source = connect.nats(server.url, "s", user="bob", password="hunter2", jetstream=False)
        iteration = aiter(source)
        await anext(iteration)
        await asyncio.to_thread(server.kill)
        server.settings = USERS.replace("hunter2", "other")
        await asyncio.to_thread(server.start)
        with pytest.raises(AuthenticationFailed):
            await take_more(iteration, 1)
        await close(source, iteration)
    finally:
        server.stop()


async def test_a_server_without_jetstream_is_named(tmp_path):
    server = Nats(tmp_path / "nats", jetstream=False).start()
    try:
        source = connect.nats(server.url, "s", durable="d")
        with pytest.raises(ConnectError, match="nats-server -js"):
            await anext(aiter(source))
        await source.close()
    finally:
        server.stop()


async def test_tls_checks_the_certificate(tmp_path, nats):
    cert, key = certificate(tmp_path)
    server = Nats(tmp_path / "nats", f'tls {{ cert_file: "{cert}", key_file: "{key}" }}').start()
    core = {"jetstream": False, "until": "end"}
    try:
        for url in (server.url, server.url.replace("nats", "tls")):
            assert await read_all(connect.nats(url, "s", tls_ca=str(cert), **core)) == []
            source = connect.nats(url, "s", **core)
            with pytest.raises(Unreachable, match="TLS"):
                await anext(aiter(source))
            await source.close()
        # A server without TLS does not get the password.
        source = connect.nats(nats.url, "s", user="bob", password="hunter2", tls=True)
        with pytest.raises(Unreachable, match="TLS"):
            await anext(aiter(source))
        await source.close()
    finally:
        server.stop()


async def test_a_url_has_the_settings(peer):
    await peer.produce([b"1"])
    parts = urlsplit(f"{peer.server.url}/{peer.subject},{peer.stream}.b")
    source = _nats.of_url(parts, {"durable": "d", "start": "earliest", "until": "end"})
    assert await read_all(source) == [1]
    assert (await peer.info()).config.durable_name == "d"
    group = {"group": "e", "until": "end"}
    assert await read_all(_nats.of_url(parts, group)) == [1]
    assert (await peer.js.consumer_info(peer.stream, "e")).num_ack_pending == 1
    assert await read_all(_nats.of_url(parts, {**group, "jetstream": "false"})) == []
    with pytest.raises(ValueError, match="durable"):
        _nats.of_url(parts, {"durabel": "g"})
    with pytest.raises(ValueError, match="name the subject"):
        _nats.of_url(urlsplit(peer.server.url), {})
    for url in ("nats://me:hunter2@h:1/a,b", "nats://hunter2@h:1/a,b"):
        other = _nats.of_url(urlsplit(url), {"start": "5.5"})
        assert other.name == "nats a, b"
        assert "hunter2" not in repr(other)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": "yesterday"}, "start='yesterday'"),
        ({"start": {"s": "1-0"}}, "sequence"),
        ({"until": "tomorrow"}, "until='tomorrow'"),
        ({"ack_wait": 0}, "ack_wait"),
        ({"batch": 0}, "batch"),
        ({"decode": "yaml"}, "decode='yaml'"),
        ({"password": "a", "password_file": "b"}, "not both"),
        ({"jetstream": False, "durable": "d"}, "core NATS"),
        ({"queue": "q"}, "durable"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.nats("nats://h", "s", **settings)


def test_the_name_stays_a_function():
    assert connect.nats is connect.nats
    assert callable(connect.nats)
