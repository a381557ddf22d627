"""URLs of connectors: what they never show."""

import pytest

from velo import connect
from velo.connect.urls import SCHEMES, endpoint_of

PATHS = {"postgres": "db/table", "postgresql": "db/table"}


def made(make, *arguments):
    """What tells of an endpoint, or of the error in its place."""
    try:
        endpoint = make(*arguments)
    except ValueError as error:
        return str(error)
    return f"{endpoint!r} {endpoint.name}"


# One that breaks off the host at each place, also behind what could be a port, and characters that
# make `urlsplit` itself repeat it.
@pytest.mark.parametrize("break_off", ["/", "?", "#", "[", "@", "\u2100"])
@pytest.mark.parametrize("begin", ["hunter", "", "123"])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_password_that_is_not_escaped_is_not_shown(scheme, begin, break_off):
    pytest.importorskip(f"velo.connect.{SCHEMES[scheme]}")
    login = f"me:{begin}{break_off}hunter2"
    for host in ("host", "host:99"):
        told = made(endpoint_of, f"{scheme}://{login}@{host}/{PATHS.get(scheme, 'name')}")
        assert "hunter" not in told


@pytest.mark.parametrize("break_off", ["/", "?", "#", "[", "@"])
@pytest.mark.parametrize("begin", ["hunter", "", "123"])
@pytest.mark.parametrize(
    ("name", "scheme", "more"),
    [
        ("kafka", "", ["t"]),
        ("redis", "", ["t"]),
        ("redis", "redis://", ["t"]),
        ("nats", "", ["t"]),
        ("nats", "nats://", ["t"]),
        ("mqtt", "", ["t"]),
        ("rabbitmq", "", ["t"]),
        ("postgres", "", ["d", "t"]),
        ("websocket", "wss://", []),
        ("http", "https://", []),
        ("sse", "https://", []),
        ("objects", "s3://", []),
    ],
)
def test_a_password_in_an_address_that_is_not_escaped_is_not_shown(
    name, scheme, more, begin, break_off
):
    make = getattr(connect, name)
    for host in ("host", "host:99", "host:x"):
        assert "hunter" not in made(make, f"{scheme}me:{begin}{break_off}hunter2@{host}", *more)


def test_a_token_that_is_not_escaped_is_not_shown():
    pytest.importorskip("nats")
    assert "not escaped" in made(endpoint_of, "nats://hunt/er2@host:4222/subject")
    assert "not escaped" in made(connect.nats, "tls://hunt/er2@host", "subject")


def test_the_message_says_how_to_escape():
    with pytest.raises(ValueError, match="`/` as %2F"):
        endpoint_of("https://me:hun/ter2@host/")
    endpoint = endpoint_of("https://me:hun%2Fter2@host/")
    assert repr(endpoint) == "http('https://host/')"
    with pytest.raises(ValueError, match="settings in a https URL are `name=value`") as caught:
        endpoint_of("https://host/?hunter2")
    assert "hunter2" not in str(caught.value)


def test_an_at_sign_behind_a_host_without_a_port_is_no_part_of_a_login():
    url = "https://host/@me?mail=me@host"
    assert repr(connect.http(url)) == "http('https://host/@me')"
    assert repr(endpoint_of(url)) == "http('https://host/@me')"


def test_a_list_of_servers_has_a_port_each():
    pytest.importorskip("confluent_kafka")
    assert "a:9092,b:9093" in repr(endpoint_of("kafka://me:hunter2@a:9092,b:9093/t"))
    with pytest.raises(ValueError, match="no number"):
        endpoint_of("kafka://a:9092,b:x/t")
