"""The connector of PostgreSQL: what every connector promises, logins, and URLs."""

from urllib.parse import urlsplit

import pytest
from conformance import SinkConformance, SourceConformance, take
from postgres_peer import own_tables  # noqa: F401

from velo import connect
from velo.connect.errors import AuthenticationFailed, NoSuchTopic, PermissionDenied, Unreachable


class TestPostgres(SourceConformance, SinkConformance):
    pass


async def test_a_login_is_checked_and_never_shown(peer, postgres, tmp_path):
    for login in ({}, {"user": "reader", "password": "hunter3"}, {"user": "strange"}):
        source = connect.postgres(peer.address, "postgres", peer.table, **login)
        with pytest.raises(AuthenticationFailed, match=peer.address) as refused:
            await take(source, 1)
        assert "hunter" not in str(refused.value)
        await source.close()
    (tmp_path / "password").write_text("hunter2\n")
    login = {"user": "reader", "password_file": tmp_path / "password"}
    source = connect.postgres(peer.address, "postgres", peer.table, **login)
    with pytest.raises(PermissionDenied, match="grant it to 'reader'"):
        await take(source, 1)
    assert "hunter" not in repr(source) + repr(source._server)
    await source.close()
    sink = connect.postgres(peer.address, "postgres", peer.out, **login)
    await sink.write([("k", {"number": 1})])
    with pytest.raises(PermissionDenied):
        await sink.flush()
    await sink.close()
    source = connect.postgres(peer.address, "elsewhere", "t", **peer.login)
    with pytest.raises(NoSuchTopic, match="no database 'elsewhere'"):
        await take(source, 1)
    await source.close()


async def test_tls(peer, postgres):
    with pytest.raises(Unreachable, match="certificate"):
        await peer.sink(tls=True).write([("k", {"number": 1})])
    sink = peer.sink(tls=str(postgres.certificate))
    await sink.write([("k", {"number": 1})])
    await sink.flush()
    assert await peer.written(1) == [b'{"number":1}']
    await sink.close()


def test_of_url():
    from velo.connect._postgres import of_url

    url = urlsplit("postgres://reader:hunt%40er2@host:1234/shop/sales.outbox")
    endpoint = of_url(url, {"start": "17.5", "upsert": "a,b", "delete": "yes"})
    assert repr(endpoint) == "postgres('host:1234/shop', 'sales.outbox')"
    assert (endpoint._server.user, endpoint._server.password) == ("reader", "hunt@er2")
    assert (endpoint._outbox._since, endpoint._rows._upsert) == (17.5, ["a", "b"])
    with pytest.raises(ValueError, match="DATABASE/TABLE"):
        of_url(urlsplit("postgres://host/outbox"), {})
    with pytest.raises(ValueError, match="no setting `colour`; it has connect_timeout, "):
        of_url(url, {"colour": "red"})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start": "never"}, "start"),
        ({"until": 7}, "until"),
        ({"poll": 0}, "poll"),
        ({"password": "a", "password_file": "b"}, "not both"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        connect.postgres("localhost", "d", "t", **settings)
