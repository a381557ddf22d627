"""Object stores by their URLs, and what their errors mean, by obstore."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
    missing,
)

try:
    from obstore import exceptions as theirs
    from obstore.store import from_url
except ImportError as error:
    raise missing("an object store", "objects") from error

__all__ = ["OPTIONS", "Place", "kind_of", "opened", "said", "status_of"]

OPTIONS = {"endpoint": str, "region": str}
"""The options of a store that the query of a URL may hold: no secrets."""

_SCHEMES = ("s3", "gs", "az", "file")
_SHOWN = 500  # letters of a message of the store
# The parameters of an address may hold a signature.
_PARAMETERS = re.compile(r"\?\S*")
_STATUS = re.compile(r"status code: (\d{3})")


class Place(NamedTuple):
    """A place in an object store.

    Attributes:
        store: The store, as obstore has it.
        prefix: What the names of objects begin with, without slashes at its ends.
        shown: The URL, for messages.

    """

    store: Any
    prefix: str
    shown: str


def opened(
    url: str,
    options: Mapping[str, Any] | None,
    *,
    what: str = "url",
    retries: int,
    connect_timeout: float,
) -> Place:
    """Open the store of a URL.

    Args:
        url: The address: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or
            `file:///folder`.
        options: Settings of the store in obstore's names.
        what: What messages call the URL.
        retries: How often a request that fails is made again.
        connect_timeout: The seconds that connecting may take.

    Raises:
        ValueError: When the URL or an option does not fit.

    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or bool(parts.netloc) == (parts.scheme == "file"):
        raise ValueError(
            f"`{what}` is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or "
            "file:///FOLDER"
        )
    if {"@", ":"} & set(parts.netloc) or parts.query:
        # The URL may hold a secret, so the message does not repeat it.
        raise ValueError(
            f"a {parts.scheme} URL has no login and no parameters: give `options`, or "
            "the variables of the environment that the store knows"
        )
    if parts.scheme == "file":
        store: Any = from_url("file:///")
    else:
        given = dict(options or {})
        client: dict[str, Any] = {"connect_timeout": timedelta(seconds=connect_timeout)}
        if str(given.get("endpoint", "")).startswith("http://"):
            client["allow_http"] = True
        try:
            store = from_url(
                f"{parts.scheme}://{parts.netloc}",
                config=given,  # type: ignore[call-overload]
                client_options=client,
                retry_config={"max_retries": retries},
            )
        except theirs.BaseError as error:
            raise ValueError(f"`options` do not fit: {said(error)}") from None
    prefix = unquote(parts.path).strip("/")
    return Place(store, prefix, f"{parts.scheme}://{parts.netloc}/{prefix}")


def kind_of(error: Exception) -> type[ConnectError]:
    """Give the error of velo that says what a reader can do about one of the store."""
    status = status_of(error)
    if isinstance(error, theirs.UnauthenticatedError) or status == 401:
        return AuthenticationFailed
    if isinstance(error, (theirs.PermissionDeniedError, PermissionError)) or status == 403:
        return PermissionDenied
    if isinstance(error, (theirs.NotFoundError, FileNotFoundError)):
        return NoSuchTopic
    text = str(error)
    if "NoSuchBucket" in text:
        return NoSuchTopic
    if "HTTP error" in text or "Server returned" in text:
        return Unreachable
    return ConnectError


def status_of(error: Exception) -> int | None:
    """Give the status of HTTP that an error tells of; listing has no errors of its own kinds."""
    found = _STATUS.search(str(error))
    return None if found is None else int(found[1])


def said(error: Exception) -> str:
    """Give the message of the store, without its causes in the form of Rust."""
    text = _PARAMETERS.sub("", str(error).partition("\n\nDebug source")[0])
    return " ".join(text.split())[:_SHOWN]
