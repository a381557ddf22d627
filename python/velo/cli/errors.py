"""What the command tells its user when it cannot go on. Never leaves `velo.cli`."""

from __future__ import annotations

import asyncio
import importlib
import traceback
from pathlib import Path
from types import TracebackType

import click

import velo
from velo.errors import VeloError

__all__ = ["Failure", "describe", "without_ours"]

_OURS = (
    "<frozen importlib",
    *(str(Path(str(module.__file__)).parent) for module in (velo, asyncio, importlib)),
)


class Failure(click.ClickException):
    """Something that was asked for rightly did not work: exit code 1."""

    exit_code = 1


def describe(error: BaseException, name: str, place: str | None = None) -> str:
    """Return what to print for an error that came out of a run of the function `name`.

    Velo's own errors are written for people. Anything else is the function's: its traceback is what
    helps, without the frames of velo around it.

    Args:
        error: The error.
        name: The function.
        place: Which event the function took last, if that is known.

    """
    where = "" if place is None else f" at {place}"
    if isinstance(error, VeloError):
        lines = [f"{error}", *getattr(error, "__notes__", ())]
        return "\n".join(lines) + (f"\n{where.strip()}" if where else "")
    error.__traceback__ = without_ours(error.__traceback__)
    text = "".join(traceback.format_exception(error)).rstrip()
    return f"`{name}` raised {type(error).__name__}{where}:\n\n{text}"


def without_ours(frames: TracebackType | None) -> TracebackType | None:
    """Drop the outer frames that are velo's, the event loop's or the import system's."""
    inner = frames
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_OURS):
        inner = inner.tb_next
    return inner
