"""Makes sources, a sink and dead letters from the URLs in the options of `velo run`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from velo.cli.same_file import is_same
from velo.connect.urls import endpoint_of, is_url, scheme_of

__all__ = ["check_apart", "dead_letters", "endpoint", "has_url"]


def has_url(*paths: str) -> bool:
    """Whether one of the names is a URL."""
    return any(is_url(path) for path in paths)


def endpoint(url: str, option: str, role: str, **settings: Any) -> Any:
    """Make the endpoint of a URL.

    Args:
        url: The URL.
        option: The option that it comes from, for messages.
        role: `"read"` or `"written"`.
        settings: Settings from other options; None: not given.

    Raises:
        click.UsageError: When the URL makes no endpoint, or none of that role.

    """
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        made = endpoint_of(url, **given)
    except (ValueError, ImportError, OSError) as error:
        raise click.UsageError(f"`{option}`: {error}") from None
    method = "__aiter__" if role == "read" else "write"
    if not hasattr(made, method):
        raise click.UsageError(f"`{option}`: {made.name} cannot be {role}")
    return made


def dead_letters(place: str | None) -> Any:
    """Make the sink of records that fail: a URL, or a file of NDJSON.

    Raises:
        click.UsageError: When it cannot be written to.

    """
    if place is None:
        return None
    if is_url(place):
        return endpoint(place, "--dead-letter", "written")
    from velo.connect import file

    return file(place)


def check_apart(read: Iterable[str], output: str, dead_letter: str | None) -> None:
    """Check that no file is read and written, or written twice.

    Args:
        read: The inputs: files and URLs.
        output: The output.
        dead_letter: The file or URL of the dead letters.

    Raises:
        click.UsageError: When a file is.

    """
    for option, place in (("--output", output), ("--dead-letter", dead_letter)):
        for input in read:
            if _same(place, input):
                raise click.UsageError(f"`{place}` is an input; name another file for `{option}`")
    if _same(output, dead_letter):
        raise click.UsageError(f"`{dead_letter}` is the output; name another `--dead-letter`")


def _same(one: str | None, other: str | None) -> bool:
    written, read = _path(one), _path(other)
    if written is None or read is None:
        return False
    if "-" in (written, read):
        return is_same(written, read)
    if os.path.exists(written):
        if not os.path.isfile(written):
            return False  # a terminal, a pipe, /dev/null
        if os.path.exists(read):
            return is_same(written, read)
    return os.path.realpath(written) == os.path.realpath(read)


def _path(place: str | None) -> str | None:
    """Return the path of a file, also from a `file:` URL, or `-`; None for any other URL."""
    if place is None:
        return None
    if not is_url(place):
        return place
    return unquote(urlsplit(place).path) if scheme_of(place) == "file" else None
