"""Log records of functions, on their way to the client's `logging`."""

from __future__ import annotations

import contextvars
import logging
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from velo import _core
from velo._function.context import stream_name
from velo._worker import last_errors

__all__ = ["ForwardingHandler", "apply_levels", "link_of_stream"]


class Link(Protocol):
    """A target of log records."""

    def log(self, record: bytes) -> bool:
        """Send a record. False: there was no room for it."""


# The client of the running stream.
link_of_stream: contextvars.ContextVar[Link] = contextvars.ContextVar("velo.link")


class ForwardingHandler(logging.Handler):
    """Sends records to the client. It never waits: without room, it drops and counts them."""

    def __init__(self, links: Callable[[], Iterable[_core.WorkerLink]]) -> None:
        super().__init__()
        self._links = links
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record to the client of the stream that logs, or else to all clients."""
        try:
            own = link_of_stream.get(None)
            if record.levelno >= logging.ERROR:
                last_errors.note_error(record)
            for link in [own] if own is not None else list(self._links()):
                self._send(link, record)
        except Exception:
            self.handleError(record)

    def _send(self, link: Link, record: logging.LogRecord) -> None:
        if self._dropped:
            text = f"{self._dropped} log records were dropped: the client did not read them in time"
            lost = logging.LogRecord("velo", logging.WARNING, __file__, 0, text, (), None)
            if not link.log(_pack(lost)):
                self._dropped += 1
                return
            self._dropped = 0
        if not link.log(_pack(record)):
            self._dropped += 1


def _pack(record: logging.LogRecord) -> bytes:
    fields = dict(record.__dict__)
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info:
        fields["exc_text"] = record.exc_text or logging.Formatter().formatException(record.exc_info)
        fields["exc_info"] = None
    fields["stream"] = stream_name.get()
    try:
        return pickle.dumps(fields, protocol=5)
    except Exception:  # an `extra` that cannot travel
        return pickle.dumps({name: _plain(value) for name, value in fields.items()}, protocol=5)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | type(None)) else repr(value)


# Loggers whose level a client has set.
_applied: set[str] = set()


def apply_levels(packed: bytes) -> None:
    """Set the levels of this process to those of the client."""
    disabled, levels = _core.loads(packed)
    logging.disable(disabled)
    for name in _applied.difference(levels):
        logging.getLogger(name).setLevel(logging.NOTSET)
    _applied.update(levels)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
