"""What the options of `velo run` make of URLs: sources, a sink, dead letters."""

from __future__ import annotations

from typing import Any

import click

from velo.connect.urls import endpoint_of, is_url

__all__ = ["dead_letters", "endpoint", "has_url"]


def has_url(*paths: str) -> bool:
    """Whether one of them is a URL."""
    return any(is_url(path) for path in paths)


def endpoint(url: str, option: str, role: str, **settings: str | None) -> Any:
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
