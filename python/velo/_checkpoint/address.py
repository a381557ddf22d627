"""The address of a checkpoint in an object store: `s3://bucket/fraud?region=eu-central-1`."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from velo.connect.settings import settings_of
from velo.connect.urls import is_url

__all__ = ["Address", "address_of", "below", "is_address"]

_SCHEMES = ("s3", "gs", "az", "file")


def _seconds(text: str) -> float:
    if not 0 <= (seconds := float(text)) < math.inf:
        raise ValueError(f"{text} is no number of seconds")
    return seconds


_OPTIONS: dict[str, Callable[[str], Any]] = {"endpoint": str, "region": str}
_SETTINGS: dict[str, Callable[[str], Any]] = {
    **_OPTIONS,
    "cache": str,
    "key_file": str,
    "connect_timeout": _seconds,
    "patience": _seconds,
}
# A shorter key can be guessed; bytes.
_SHORTEST_KEY = 16


@dataclass(frozen=True)
class Address:
    """Where a checkpoint is, and how it is read and written.

    Attributes:
        url: The store and the prefix, without settings.
        options: Options of the store.
        folder: The folder of the working copy.
        key: What objects are signed with; None: they are not.
        connect_timeout: The seconds that connecting may take.
        patience: The seconds for which a store that does not answer is tried again.

    """

    url: str
    options: dict[str, Any]
    folder: Path
    key: bytes | None = field(repr=False)
    connect_timeout: float = 10.0
    patience: float = 60.0


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether `checkpoint=` names an object store, and not a folder."""
    return isinstance(path, str) and is_url(path)


def address_of(text: str) -> Address:
    """Read the address of a checkpoint.

    Raises:
        ValueError: When the URL, one of its settings, or the key does not fit.

    """
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            "`checkpoint` is a folder, or a URL of an object store: s3://BUCKET/PREFIX, "
            f"gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER; {parts.scheme}:// is "
            "none"
        )
    values = settings_of(_query(parts.query), _SETTINGS, parts.scheme)
    names = set(_OPTIONS) & set(values)
    options = {name: values.pop(name) for name in names}
    url = parts._replace(query="", fragment="").geturl().rstrip("/")
    cache, key = values.pop("cache", None), _key(values.pop("key_file", None))
    return Address(url, options, _folder(url, options, cache), key, **values)


def below(url: str, name: str) -> str:
    """Return the address of a checkpoint whose prefix is `name` under that of another one."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name, safe='')}").geturl()


def _query(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)))
    except ValueError:
        # It may hold a secret, so the message does not repeat it.
        raise ValueError(
            "the settings in the URL of a checkpoint are `name=value`, with `&` between them"
        ) from None


def _folder(url: str, options: dict[str, Any], cache: str | None) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = cache or os.environ.get("VELO_CHECKPOINT_CACHE") or f"{home}/velo/checkpoints"
    place = f"{options.get('endpoint', '')} {url}"
    return Path(folder).expanduser() / hashlib.sha256(place.encode()).hexdigest()[:16]


def _key(file: str | None) -> bytes | None:
    """Give the key: out of a file, or of the environment."""
    file = file or os.environ.get("VELO_CHECKPOINT_KEY_FILE")
    if file:
        try:
            key = Path(file).read_bytes().strip()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ValueError(
                f"the key of the checkpoint, `{file}`, cannot be read: {why}"
            ) from None
        source = f"`{file}`"
    elif text := os.environ.get("VELO_CHECKPOINT_KEY"):
        key, source = text.encode(), "`VELO_CHECKPOINT_KEY`"
    else:
        return None
    if len(key) < _SHORTEST_KEY:
        raise ValueError(
            f"{source} is the key of a checkpoint, and has {len(key)} bytes; it needs at least "
            f"{_SHORTEST_KEY}: `openssl rand -hex 32` makes one"
        )
    return key
