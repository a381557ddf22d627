"""The errors that end the command. They never leave `velo.cli`."""

from __future__ import annotations

import asyncio
import importlib
import traceback
from pathlib import Path
from types import TracebackType

import click

import velo
from velo.errors import VeloError

__all__ = ["Failure", "NobodyReads", "describe", "without_ours"]

_OURS = (
    "<frozen importlib",
    *(str(Path(str(module.__file__)).parent) for module in (velo, asyncio, importlib)),
)


class Failure(click.ClickException):
    """A valid command failed: exit code 1."""

    exit_code = 1


class NobodyReads(Exception):
    """Standard output is a pipe whose reader has gone."""


def describe(error: BaseException, name: str, place: str | None = None) -> str:
    """Return the text to print for an error of a run of the function `name`.

    Velo's own errors are written for users. Any other error is the function's: its traceback is
    printed, without the frames of velo around it.

    Args:
        error: The error.
        name: The name of the function.
        place: The event that the function took last, in words; empty if it is not known.

    """
    where = "" if place is None else f" at {place}"
    if isinstance(error, VeloError):
        lines = [f"{error}", *getattr(error, "__notes__", ())]
        return "\n".join(lines) + (f"\n{where.strip()}" if where else "")
    error.__traceback__ = without_ours(error.__traceback__)
    text = "".join(traceback.format_exception(error)).rstrip()
    return f"`{name}` raised {type(error).__name__}{where}:\n\n{text}"


def without_ours(frames: TracebackType | None) -> TracebackType | None:
    """Drop the outer frames that belong to velo, the event loop or the import system."""
    inner = frames
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_OURS):
        inner = inner.tb_next
    return inner
