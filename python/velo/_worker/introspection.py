"""What a worker tells of its streams to those who look.

It is all read from what is there anyway: a stream that nobody looks at pays nothing for it.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import operator
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from velo._function.context import stream_name
from velo.errors import StreamClosed

if TYPE_CHECKING:
    from velo._worker.main import Client

__all__ = [
    "Opened",
    "described",
    "failures",
    "find",
    "inspect",
    "moment",
    "name_of",
    "note_error",
    "note_failure",
    "opened_since",
    "packed",
]

# So many characters of a value are shown, and so many local variables of a frame.
_LONGEST = 200
_MOST_LOCALS = 100
# So deep is what an await waits for followed.
_DEEPEST = 50
# So many streams are named in one answer, which takes a few milliseconds.
_MOST_NAMED = 1000
# Of so many streams the last error is known.
_MOST_ERRORS = 256

_last = 0
_errors: collections.OrderedDict[str, str] = collections.OrderedDict()
_failed: collections.OrderedDict[str, str] = collections.OrderedDict()


class Opened(NamedTuple):
    """A stream that is open here, or parked, which has no place on a link."""

    link: int | None
    slot: int | None
    function: str
    age: float
    task: asyncio.Task[None]
    # What it is kept under, and for how long it is parked.
    key: str | None = None
    parked: float | None = None


def moment() -> int:
    """Return a moment, in nanoseconds of the monotonic clock, that no other stream has."""
    global _last
    _last = max(_last + 1, time.monotonic_ns())
    return _last


def opened_since(clients: Iterable[Client], since: int, longest: int) -> str:
    """Name the streams that were opened after a moment, the oldest first, or as many as fit.

    What is known is not told again, so that looking costs little, however many streams are open.
    `until` is the moment up to which everything was told, and `more` whether there is more.
    """
    new: list[tuple[int, Client, int, int, str | None]] = []
    for client in clients:
        for slot, (function, opened, key) in reversed(client.opened.items()):
            if opened <= since:
                break
            new.append((opened, client, slot, function, key))
    new.sort(key=operator.itemgetter(0))
    told: list[tuple[int, int, str, str, int, str | None]] = []
    room, until = longest - 1024, moment()
    for opened, client, slot, function, key in new[:_MOST_NAMED]:
        name, where = client.tasks[slot].get_name(), name_of(client.functions.get(function))
        # A character is `\uxxxx` at the longest.
        room -= 6 * (len(name) + len(where) + len(key or "")) + 64
        if room < 0:
            break
        told.append((client.number, slot, name, where, opened, key))
    more = len(told) < len(new)
    if more:
        until = told[-1][4] if told else new[0][0]  # a name that can never be told is passed over
    return json.dumps({"until": until, "more": more, "now": time.monotonic_ns(), "opened": told})


def find(client: Client, which: str) -> list[Opened]:
    """Return the open streams with this name, under this key, or at this place.

    A place is `LINK:SLOT`, or `LINK:SLOT:NAME`.
    """
    return [stream for stream in _opened(client) if which in _names(stream)]


def _names(stream: Opened) -> tuple[str | None, ...]:
    name, place = stream.task.get_name(), f"{stream.link}:{stream.slot}"
    return name, place, f"{place}:{name}", stream.key


def _opened(client: Client) -> Iterator[Opened]:
    now = time.monotonic_ns()
    for slot, task in list(client.tasks.items()):
        function, opened, key = client.opened[slot]
        name = name_of(client.functions.get(function))
        yield Opened(client.number, slot, name, (now - opened) / 1e9, task, key)


def name_of(known: bytes | tuple[Callable[..., Any], bool] | None) -> str:
    """Return `module:function` of what a client has defined, as far as it was loaded."""
    if known is None or isinstance(known, bytes):
        return "?"
    function, _ = known
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or '?'}:{name}"


def described(stream: Opened) -> dict[str, Any]:
    """Say which stream it is."""
    return {
        "link": stream.link,
        "slot": stream.slot,
        "name": stream.task.get_name(),
        "function": stream.function,
        "age": round(stream.age, 3),
        "key": stream.key,
        "parked": None if stream.parked is None else round(stream.parked, 3),
    }


def inspect(stream: Opened) -> dict[str, Any]:
    """Say where its function stands, with what, and what it waits for."""
    name = stream.task.get_name()
    said: dict[str, Any] = {**described(stream), "error": _errors.get(name)}
    generator = getattr(stream.task.get_coro(), "generator", None)
    frame, awaited, running = _state(generator)
    if frame is None:
        return {**said, "state": "ended" if generator is None else "not in Python code"}
    waits = list(_awaited(awaited))
    if stream.parked is not None:
        state = "parked"
    elif waits:
        state = "waiting"
    else:
        state = "running" if running else "at its beginning" if frame.f_lasti < 0 else "at a yield"
    return {
        **said,
        "state": state,
        "file": frame.f_code.co_filename,
        "line": frame.f_lineno or frame.f_code.co_firstlineno,
        "locals": _locals(frame),
        "waits_for": waits,
    }


def _state(thing: Any) -> tuple[FrameType | None, Any, bool]:
    """Return the frame of a coroutine or generator, what it awaits, and whether it runs."""
    for kind in ("ag", "cr", "gi"):
        if hasattr(thing, f"{kind}_frame"):
            awaited = getattr(thing, f"{kind}_await" if kind != "gi" else "gi_yieldfrom")
            return getattr(thing, f"{kind}_frame"), awaited, getattr(thing, f"{kind}_running")
    return None, None, False


def _awaited(thing: Any) -> Iterator[str]:
    for _ in range(_DEEPEST):
        if thing is None:
            return
        frame, inner, _running = _state(thing)
        if frame is None:
            yield _short.repr(thing)
            return
        code: CodeType = frame.f_code
        yield f"{code.co_qualname} at {code.co_filename}:{frame.f_lineno}"
        thing = inner


def _locals(frame: FrameType) -> dict[str, str]:
    variables = list(frame.f_locals.items())
    shown = {name: _short.repr(value) for name, value in variables[:_MOST_LOCALS]}
    if len(variables) > _MOST_LOCALS:
        shown["..."] = f"{len(variables) - _MOST_LOCALS} more"
    return shown


class _Short(reprlib.Repr):
    """Represents values in few characters, whatever they are and whatever their methods do."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxdeque = 8

    def repr(self, x: Any) -> str:
        try:
            text = super().repr(x)
        except Exception as error:
            text = f"<{type(x).__qualname__}, whose repr raised {type(error).__qualname__}>"
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_short = _Short()


def note_error(record: logging.LogRecord) -> None:
    """Keep what a stream has logged as an error, in case somebody asks."""
    if (name := stream_name.get(None)) is not None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {_short.repr(record.exc_info[1])}"
        _keep(_errors, name, text)


def note_failure(error: BaseException) -> None:
    """Keep what a stream has failed with, in case somebody asks."""
    if (name := stream_name.get(None)) is not None and not isinstance(error, StreamClosed):
        _keep(_failed, name, _short.repr(error))


def _keep(errors: collections.OrderedDict[str, str], name: str, text: str) -> None:
    errors[name] = text[: 5 * _LONGEST]
    errors.move_to_end(name)
    while len(errors) > _MOST_ERRORS:
        errors.popitem(last=False)


def failures(name: str) -> list[dict[str, Any]]:
    """Say what a stream has failed with that is over."""
    return [{"name": name, "state": "failed", "error": _failed[name]}] if name in _failed else []


def packed(said: Iterable[dict[str, Any]], longest: int) -> str:
    """Make an answer of as much as fits."""
    parts: list[str] = []
    room = longest - 1024
    omitted = 0
    for one in said:
        part = json.dumps(one)
        if len(part) + 2 > room:
            omitted += 1
            continue
        room -= len(part) + 2
        parts.append(part)
    return f'{{"omitted": {omitted}, "streams": [{", ".join(parts)}]}}'
