"""URLs: `kafka://localhost:9092/payments?group=fraud` as an endpoint."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

__all__ = ["SCHEMES", "endpoint_of", "host_of", "is_url", "scheme_of", "split"]

# The file of each scheme.
SCHEMES = {
    "kafka": "_kafka",
    "redis": "_redis",
    "rediss": "_redis",
    "nats": "_nats",
    "mqtt": "_mqtt",
    "mqtts": "_mqtt",
    "amqp": "_rabbitmq",
    "amqps": "_rabbitmq",
    "postgres": "_postgres",
    "postgresql": "_postgres",
    "ws": "_websocket",
    "wss": "_websocket",
    "http": "_http",
    "https": "_http",
    "sse": "_sse",
    "sses": "_sse",
    "s3": "_objects",
    "gs": "_objects",
    "az": "_objects",
    "file": "_file",
}
# Their login may be a token alone.
_WITH_TOKENS = ("nats", "tls")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def scheme_of(text: str) -> str | None:
    """Give the scheme of a URL, in small letters; None for what is none."""
    found = _SCHEME.match(text)
    return None if found is None else found[1].lower()


def is_url(text: str) -> bool:
    """Tell a URL from a path."""
    return scheme_of(text) is not None


def split(url: str) -> SplitResult:
    """Take a URL apart.

    A password with a `/`, a `?` or a `#` that is not escaped breaks off the part with the host, and
    what is behind that would appear in names and messages.

    Raises:
        ValueError: When it does not tell host and port, or may hold such a password. The message
            does not repeat it.

    """
    try:
        parts = urlsplit(url)
        for server in parts.netloc.rpartition("@")[2].split(","):
            _address_of(server)
    except ValueError:
        torn = True
    else:
        behind = parts.path + parts.query + parts.fragment
        torn = "@" in behind and (":" in parts.netloc or parts.scheme in _WITH_TOKENS)
    if torn:
        raise ValueError(
            "the port of a URL is no number, or its password is not escaped: write `/` as %2F, "
            "`?` as %3F, `#` as %23, `[` as %5B and `@` as %40 there, and `@` behind the host too"
        )
    return parts


def host_of(server: str, port: int) -> tuple[str, int]:
    """Give host and port of `host` or `host:port`.

    Args:
        server: The server, without a login.
        port: The port, where it names none.

    Raises:
        ValueError: When it is neither. It may be a URL with a password, and is not repeated.

    """
    try:
        host, given = _address_of(server)
    except ValueError:
        host, given = None, None
    if not host or "@" in server or "/" in server:
        raise ValueError(
            "`server` is a host, or host:port with a number; pass user and password as settings"
        )
    return host, given or port


def _address_of(server: str) -> tuple[str | None, int | None]:
    parts = SplitResult("", server, "", "", "")
    return parts.hostname, parts.port


def endpoint_of(url: str, **settings: Any) -> Any:
    """Make the endpoint of a URL: a source, a sink, or both.

    Args:
        url: The URL. Its query holds settings of the connector.
        settings: More of those, which the query overrides.

    Raises:
        ValueError: When no connector has the scheme, it has no such setting, or the URL does not
            fit.
        ImportError: When the connector's package is not installed.

    """
    scheme = scheme_of(url)
    if scheme not in SCHEMES:
        raise ValueError(
            f"no connector reads or writes {scheme}:// URLs; there are {', '.join(sorted(SCHEMES))}"
        )
    try:
        connector = importlib.import_module(f"velo.connect.{SCHEMES[scheme]}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("velo."):
            raise ValueError(f"this version has no connector for {scheme}:// URLs") from None
        raise
    parts = split(url)
    try:
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # It may hold a secret, so the message does not repeat it.
        raise ValueError(
            f"the settings in a {scheme} URL are `name=value`, with `&` between them"
        ) from None
    return connector.of_url(parts, {**settings, **dict(query)})
