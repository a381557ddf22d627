"""Exceptions that cross from a worker to its client."""

from __future__ import annotations

import traceback
from typing import Any

from velo import _core
from velo.errors import RemoteError

Packed = tuple[BaseException | None, str, str, str, tuple[str, ...]]


def pack(error: BaseException) -> Packed:
    """Return what travels: the exception itself where it can, and in words in any case."""
    text = "".join(traceback.format_exception(error))
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    message = _message(error)
    notes = tuple(str(note) for note in getattr(error, "__notes__", ()))
    return (error if _survives(error) else None, kind, message, text, notes)


def unpack(packed: Packed | None) -> BaseException:
    """Return the exception to raise at the caller, with the worker's traceback as a note."""
    if packed is None:
        return RemoteError("unknown", "the exception could not be described")
    error, kind, message, text, notes = packed
    if error is None:
        error = RemoteError(kind, message, text)
        for note in notes:
            error.add_note(note)
    error.add_note(f"in the worker:\n{text.rstrip()}")
    return error


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:
        return f"<message unavailable: its __str__ raised {type(failed).__name__}>"


def _survives(error: BaseException) -> bool:
    """Whether the exception comes out of the codec as it went in.

    Pickle rebuilds an exception from its `args`, which fails, or gives something else, for types
    with other constructor arguments. Trying it here is the only way to know.
    """
    try:
        again: Any = _core.loads(_core.dumps(error))
    except BaseException:
        return False
    return type(again) is type(error) and _message(again) == _message(error)
