"""URLs: `kafka://localhost:9092/payments?group=fraud` as an endpoint."""

from __future__ import annotations

import importlib
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = ["SCHEMES", "endpoint_of", "is_url", "scheme_of"]

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
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def scheme_of(text: str) -> str | None:
    """Give the scheme of a URL, in small letters; None for what is none."""
    found = _SCHEME.match(text)
    return None if found is None else found[1].lower()


def is_url(text: str) -> bool:
    """Tell a URL from a path."""
    return scheme_of(text) is not None


def endpoint_of(url: str, **settings: Any) -> Any:
    """Make the endpoint of a URL: a source, a sink, or both.

    Args:
        url: The URL. Its query holds settings of the connector.
        settings: More of those, which the query overrides.

    Raises:
        ValueError: When no connector has the scheme, or it has no such setting.
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
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    return connector.of_url(parts, {**settings, **dict(query)})
