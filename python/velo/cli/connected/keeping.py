"""`velo run --checkpoint` and the options beside it: checks, and the settings of `into`."""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Sequence
from typing import Any

import click

from velo import StreamFn
from velo.cli.errors import Failure
from velo.connect.urls import is_url

__all__ = ["check_kept", "is_plain", "kept_settings"]


def kept_settings(
    folder: str | None, every: float | None, unload: bool, ttl: float | None, trust: bool
) -> dict[str, Any]:
    """Return the settings of `Connected.into`; none without a folder.

    Raises:
        click.UsageError: When an option needs `--checkpoint`, or its URL does not fit.
        Failure: When obstore is not installed.

    """
    settings: dict[str, Any] = {}
    if every is not None:
        settings["checkpoint_every"] = every
    if unload:
        settings["keys"] = "unload"
    if ttl is not None:
        settings["ttl"] = ttl
    if trust:
        settings["trusted"] = True
    if folder is None and settings:
        raise click.UsageError(
            "`--checkpoint-every`, `--unload`, `--ttl` and `--trust` need `--checkpoint`"
        )
    if folder is None:
        return settings
    if is_url(folder):
        _check_address(folder)
    return {"checkpoint": folder, **settings}


def _check_address(url: str) -> None:
    from velo._checkpoint.address import address_of

    try:
        address_of(url)
        importlib.import_module("velo._checkpoint.bucket")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except ImportError as error:
        raise Failure(str(error)) from None


def check_kept(fn: StreamFn[Any, Any], paths: Sequence[str], *, follow: bool, resume: bool) -> None:
    """Check that a run with a checkpoint has a state, and can go back to a position of its inputs.

    Args:
        fn: The stream function.
        paths: The inputs: files and URLs.
        follow: Whether files are followed.
        resume: Whether the run is to go on by `--resume`.

    Raises:
        click.UsageError: When it cannot.

    """
    if resume:
        raise click.UsageError(
            "`--resume` makes the state anew from the whole input, and `--checkpoint` keeps it: "
            "drop one of them"
        )
    if not fn._spec.has_state:
        from velo._api.terms import no_state

        raise click.UsageError(str(no_state(fn._spec)))
    files = [path for path in paths if not is_url(path)]
    for path in files:
        if path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
            what = "standard input" if path == "-" else f"`{path}`"
            raise click.UsageError(
                f"`--checkpoint` reads from where it stopped, and {what} cannot be read again: "
                "name a file or a URL"
            )
    if files and follow:
        raise click.UsageError(
            "`--checkpoint` follows a file by its URL: "
            "`--input 'file:///var/log/clicks.ndjson?follow=true'`, without `--follow`"
        )


def is_plain(path: str) -> bool:
    """Whether an output is a file, or can become one: no pipe, no device, no URL."""
    if path == "-" or is_url(path):
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True
