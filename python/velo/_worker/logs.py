"""What functions log in a worker, on its way to their own program's `logging`.

A record is handled once, by the program whose stream it comes from: handlers that a module attaches
when it is imported are there and here, and only those run here that the program has not. Nothing of
one program's log is seen by another that shares the worker, nor do its levels hold for it.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from velo import _core
from velo._function.context import stream_name
from velo._worker import last_errors

__all__ = ["ForwardingHandler", "Line", "apply_levels", "line_of_stream", "take_over"]


class Line:
    """The destination of one client's records, and the levels that the client handles.

    Attributes:
        program: What tells its program from the others: those of one program get a record once.

    """

    def __init__(self, link: _core.WorkerLink, program: object) -> None:
        self._link = link
        self.program = program
        self._disabled = 0
        self._levels: dict[str, int] | None = None
        self._handled: frozenset[str] = frozenset()
        self._effective: dict[str, int] = {}

    def told(self, packed: bytes) -> None:
        """Note at which levels the client logs, and which loggers have handlers there."""
        self._disabled, self._levels, handled = _core.loads(packed)
        self._handled = frozenset(handled)
        self._effective.clear()

    @property
    def said(self) -> bool:
        """Whether the client has sent its levels."""
        return self._levels is not None

    @property
    def disabled(self) -> int:
        """At which level and below it handles nothing."""
        return self._disabled

    def names(self) -> Iterable[str]:
        """Return the loggers that have a level of their own there."""
        return self._levels or ()

    def level(self, name: str) -> int:
        """Return the level of a logger there, which may be that of one above it."""
        known = self._effective.get(name)
        if known is None:
            levels, above = self._levels or {}, name
            while above and above not in levels:
                above = above.rpartition(".")[0]
            known = levels.get(above or "root", logging.WARNING)
            self._effective[name] = known
        return known

    def handles(self, logger: str) -> bool:
        """Whether a logger has handlers there."""
        return logger in self._handled

    def wants(self, record: logging.LogRecord) -> bool:
        """Whether the client would handle a record."""
        return not self.said or (
            record.levelno > self._disabled and record.levelno >= self.level(record.name)
        )

    def log(self, record: bytes) -> bool:
        """Send a record; false when the client reads none."""
        return self._link.log(record)


# What takes the records of the running code.
line_of_stream: contextvars.ContextVar[Any] = contextvars.ContextVar("velo.line")


class ForwardingHandler(logging.Handler):
    """Stands for the program's own handlers at the root: `logging.basicConfig` finds one."""

    def __init__(self, lines: Callable[[], list[Line]]) -> None:
        super().__init__()
        self._lines = lines
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing: `forward` has had the record, whichever logger's handlers it passes."""

    def line(self) -> Any:
        """Return where the records of the running code go; None where that cannot be told."""
        own = line_of_stream.get(None)
        if own is not None:
            return own
        lines = self._lines()
        alone = len({line.program for line in lines}) == 1
        return lines[-1] if alone else None

    def forward(self, line: Any, record: logging.LogRecord) -> None:
        """Send a record. It never waits: what finds no room is dropped and counted."""
        try:
            if record.levelno >= logging.ERROR:
                last_errors.note_error(record)
            if line is None:
                # Of several programs it could be any: it is the supervisor's to show.
                if self._lines() and record.levelno >= logging.WARNING:
                    print(f"{record.name}: {record.getMessage()}", file=sys.stderr)
            elif line.wants(record):
                self._send(line, record)
        except Exception:
            self.handleError(record)

    def _send(self, line: Any, record: logging.LogRecord) -> None:
        if self._dropped:
            text = f"{self._dropped} log records were dropped: the client did not read them in time"
            lost = logging.LogRecord("velo", logging.WARNING, __file__, 0, text, (), None)
            if not line.log(_pack(lost)):
                self._dropped += 1
                return
            self._dropped = 0
        if not line.log(_pack(record)):
            self._dropped += 1


def take_over(handler: ForwardingHandler) -> Callable[[], None]:
    """Have this worker's records handled by the programs that they belong to.

    Returns:
        What gives a forked child its logging back.

    """
    logging.root.addHandler(handler)
    call_handlers = logging.Logger.callHandlers
    start, submit = threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit

    def call(self: logging.Logger, record: logging.LogRecord) -> None:
        line = handler.line()
        handler.forward(line, record)
        logger: logging.Logger | None = self
        while logger is not None:
            if line is None or not line.handles(logger.name):
                for each in logger.handlers:
                    if each is not handler and record.levelno >= each.level:
                        each.handle(record)
            logger = logger.parent if logger.propagate else None

    def start_in(self: threading.Thread) -> None:
        self.run = _in_stream(self.run)  # type: ignore[method-assign]
        start(self)

    def submit_in(self: Any, function: Any, /, *args: Any, **keywords: Any) -> Any:
        return submit(self, _in_stream(function), *args, **keywords)

    logging.Logger.callHandlers = call  # type: ignore[method-assign]
    threading.Thread.start = start_in  # type: ignore[method-assign]
    concurrent.futures.ThreadPoolExecutor.submit = submit_in  # type: ignore[method-assign]

    def give_back() -> None:
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
        threading.Thread.start = start  # type: ignore[method-assign]
        concurrent.futures.ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        logging.root.removeHandler(handler)

    return give_back


def _in_stream(call: Callable[..., Any]) -> Callable[..., Any]:
    """Have a call in another thread belong to the stream that it is made for."""
    line = line_of_stream.get(None)
    if line is None:
        return call
    return functools.partial(_call_in, line, stream_name.get(), call)


def _call_in(line: Any, name: str | None, call: Any, /, *args: Any, **keywords: Any) -> Any:
    ours, named = line_of_stream.set(line), stream_name.set(name)
    try:
        return call(*args, **keywords)
    finally:
        line_of_stream.reset(ours)
        stream_name.reset(named)


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


# Loggers whose level clients have set.
_applied: set[str] = set()


def apply_levels(lines: Iterable[Line]) -> None:
    """Have this process log what any of the clients would handle; each gets its own."""
    told = [line for line in lines if line.said]
    if not told:
        return
    logging.disable(min(line.disabled for line in told))
    names = {name for line in told for name in line.names()}
    for name in _applied.difference(names):
        logging.getLogger(name).setLevel(logging.NOTSET)
    _applied.update(names)
    for name in names:
        logging.getLogger(name).setLevel(min(line.level(name) for line in told))
