"""What a stream function waits for: the chain of awaits below it."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

__all__ = ["Awaited", "describe", "walk"]

# Maximum depth of the chain.
_DEPTH = 50


class Awaited(NamedTuple):
    """One member of a chain of awaits.

    Attributes:
        thing: A coroutine, a generator, or anything else that can be awaited.
        frame: Where it stands. None: it does not run Python code, or it has ended.
        running: Whether it runs now, rather than waits.

    """

    thing: Any
    frame: FrameType | None
    running: bool


def walk(awaited: Any) -> Iterator[Awaited]:
    """Yield something that is awaited, what that awaits, and so on, up to what has no frame."""
    for _ in range(_DEPTH):
        if awaited is None:
            return
        one, inner = _look(awaited)
        yield one
        if one.frame is None:
            return
        awaited = inner


def _look(awaited: Any) -> tuple[Awaited, Any]:
    for kind, inner in (("ag", "ag_await"), ("cr", "cr_await"), ("gi", "gi_yieldfrom")):
        if hasattr(awaited, f"{kind}_frame"):
            frame, running = getattr(awaited, f"{kind}_frame"), getattr(awaited, f"{kind}_running")
            return Awaited(awaited, frame, running), getattr(awaited, inner)
    return Awaited(awaited, None, False), None


def describe(task: Any) -> str | None:
    """Describe what the stream function that a task runs is waiting for, outermost frame first."""
    chain = walk(task.get_coro().generator)
    lines = [line for one in chain if one.frame is not None for line in _lines(one.frame)]
    return "it was waiting here:\n" + "\n".join(lines) if lines else None


def _lines(frame: FrameType) -> list[str]:
    code, number = frame.f_code, frame.f_lineno
    lines = [f'  File "{code.co_filename}", line {number}, in {code.co_name}']
    text = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return [*lines, f"    {text}"] if text else lines
