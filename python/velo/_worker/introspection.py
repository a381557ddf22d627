"""Answers of a worker to `velo status`, `velo top` and `velo inspect`, about its streams.

They are computed when they are asked for: streams pay nothing for them otherwise.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple

from velo import _core
from velo._diagnostics.await_trace import Awaited, walk
from velo._worker.client import Client, OpenStream
from velo._worker.last_errors import error_of
from velo._worker.short_repr import shorten

__all__ = [
    "StreamInfo",
    "describe",
    "find",
    "find_key",
    "inspect",
    "is_named",
    "moment",
    "name_of",
    "opened_since",
    "pack",
    "where",
]

# How many local variables of a frame are shown.
_MOST_LOCALS = 100
# How many streams one answer names, which takes a few milliseconds.
_MOST_NAMED = 1000

_last = 0


class StreamInfo(NamedTuple):
    """A stream that is open here, or a detached session, which has no slot of a link."""

    link: int | None
    slot: int | None
    function: str
    age: float
    task: asyncio.Task[None]
    # The key of its session, and for how many seconds that has been detached.
    key: str | None = None
    detached: float | None = None


def moment() -> int:
    """Return a moment, in nanoseconds of the monotonic clock, that no other stream has."""
    global _last
    _last = max(_last + 1, time.monotonic_ns())
    return _last


def opened_since(clients: Iterable[Client], since: int, longest: int) -> str:
    """Name the streams that were opened after a moment, the oldest first, or as many as fit.

    Streams before that are known already, so that an answer stays short, however many streams are
    open. `until` is the moment up to which all were named, and `more` whether some are left.
    """
    new: list[tuple[Client, int, OpenStream]] = []
    for client in clients:
        for slot, stream in reversed(client.opened.items()):
            if stream.moment <= since:
                break
            new.append((client, slot, stream))
    new.sort(key=lambda one: one[2].moment)
    named: list[tuple[int, int, str, str, int, str | None]] = []
    room, until = longest - 1024, moment()
    for client, slot, (function, opened, key) in new[:_MOST_NAMED]:
        name, where = client.tasks[slot].get_name(), name_of(client.functions.get(function))
        # A character is `\uxxxx` at the longest.
        room -= 6 * (len(name) + len(where) + len(key or "")) + 64
        if room < 0:
            break
        named.append((client.number, slot, name, where, opened, key))
    more = len(named) < len(new)
    if more:
        # A name that can never fit is passed over.
        until = named[-1][4] if named else new[0][2].moment
    return json.dumps({"until": until, "more": more, "now": time.monotonic_ns(), "opened": named})


def find(client: Client, which: str) -> list[StreamInfo]:
    """Return the open streams with this name, under this key, or at this place.

    A place is `LINK:SLOT`, or `LINK:SLOT:NAME`.
    """
    return [stream for stream in _opened(client) if which in _names(stream)]


def find_key(client: Client, function: str, key: str) -> list[StreamInfo]:
    """Return the open streams of a function that are attached to the session under this key."""
    return [
        stream
        for stream in _opened(client)
        if stream.key == key and is_named(stream.function, function)
    ]


def is_named(function: str, name: str) -> bool:
    """Whether a function, as `module:name`, is called so."""
    return name in (function, function.rpartition(":")[2])


def _names(stream: StreamInfo) -> tuple[str | None, ...]:
    name, place = stream.task.get_name(), f"{stream.link}:{stream.slot}"
    return name, place, f"{place}:{name}", stream.key


def _opened(client: Client) -> Iterator[StreamInfo]:
    now = time.monotonic_ns()
    for slot, task in list(client.tasks.items()):
        function, opened, key = client.opened[slot]
        name = name_of(client.functions.get(function))
        yield StreamInfo(client.number, slot, name, (now - opened) / 1e9, task, key)


def name_of(known: bytes | tuple[Callable[..., Any], bool] | None) -> str:
    """Return `module:function` of what a client has defined, as far as it was loaded."""
    if known is None or isinstance(known, bytes):
        return "?"
    function, _ = known
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or '?'}:{name}"


def describe(stream: StreamInfo) -> dict[str, Any]:
    """Return which stream it is."""
    return {
        "link": stream.link,
        "slot": stream.slot,
        "name": stream.task.get_name(),
        "function": stream.function,
        "age": round(stream.age, 3),
        "key": stream.key,
        "detached": None if stream.detached is None else round(stream.detached, 3),
    }


def inspect(stream: StreamInfo) -> dict[str, Any]:
    """Return the place of its function, its local variables, and the awaits from there."""
    known = {**describe(stream), "error": error_of(stream.task.get_name())}
    stands = where(getattr(stream.task.get_coro(), "generator", None))
    if stream.detached is not None and "file" in stands:
        stands["state"] = "detached"
    return {**known, **stands}


def where(generator: Any) -> dict[str, Any]:
    """Return where the function of a generator stands, and with what."""
    chain = list(walk(generator))
    if not chain or (frame := chain[0].frame) is None:
        return {"state": "ended" if generator is None else "not in Python code"}
    waits = [_shown(one) for one in chain[1:]]
    if waits:
        state = "waiting"
    elif chain[0].running:
        state = "running"
    else:
        state = "at its beginning" if frame.f_lasti < 0 else "at a yield"
    return {
        "state": state,
        "file": frame.f_code.co_filename,
        "line": frame.f_lineno or frame.f_code.co_firstlineno,
        "locals": _locals(frame),
        "waits_for": waits,
    }


# What a function awaits that is velo's own, by its type.
_OURS = {
    _core.Events: "its next event",
    _core.Ticks: "its next event, or a tick",
}


def _shown(awaited: Awaited) -> str:
    if (frame := awaited.frame) is None:
        return _OURS.get(type(awaited.thing)) or shorten(awaited.thing)
    code = frame.f_code
    return f"{code.co_qualname} at {code.co_filename}:{frame.f_lineno}"


def _locals(frame: FrameType) -> dict[str, str]:
    variables = list(frame.f_locals.items())
    shown = {name: shorten(value) for name, value in variables[:_MOST_LOCALS]}
    if len(variables) > _MOST_LOCALS:
        shown["..."] = f"{len(variables) - _MOST_LOCALS} more"
    return shown


def pack(streams: Iterable[dict[str, Any]], longest: int) -> str:
    """Return an answer that holds as many of them as fit, and counts the others."""
    parts: list[str] = []
    room = longest - 1024
    omitted = 0
    for stream in streams:
        part = json.dumps(stream)
        if len(part) + 2 > room:
            omitted += 1
            continue
        room -= len(part) + 2
        parts.append(part)
    return f'{{"omitted": {omitted}, "streams": [{", ".join(parts)}]}}'
