"""The last errors of streams, for `velo inspect`: those that were logged, or ended the stream."""

from __future__ import annotations

import collections
import logging
from typing import Any

from velo._function.context import stream_name
from velo._worker.short_repr import LONGEST, shorten
from velo.errors import StreamClosed

__all__ = ["error_of", "failures", "note_error", "note_failure"]

# How many streams are remembered.
_MOST = 256

_logged: collections.OrderedDict[str, str] = collections.OrderedDict()
_failed: collections.OrderedDict[str, str] = collections.OrderedDict()


def note_error(record: logging.LogRecord) -> None:
    """Remember what a stream has logged as an error."""
    if (name := stream_name.get(None)) is not None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {shorten(record.exc_info[1])}"
        _keep(_logged, name, text)


def note_failure(error: BaseException) -> None:
    """Remember what a stream has failed with."""
    if (name := stream_name.get(None)) is not None and not isinstance(error, StreamClosed):
        _keep(_failed, name, shorten(error))


def _keep(errors: collections.OrderedDict[str, str], name: str, text: str) -> None:
    errors[name] = text[: 5 * LONGEST]
    errors.move_to_end(name)
    while len(errors) > _MOST:
        errors.popitem(last=False)


def error_of(name: str) -> str | None:
    """Return what an open stream has logged last as an error."""
    return _logged.get(name)


def failures(name: str) -> list[dict[str, Any]]:
    """Describe the failure of a stream that has ended, if it is remembered."""
    return [{"name": name, "state": "failed", "error": _failed[name]}] if name in _failed else []
