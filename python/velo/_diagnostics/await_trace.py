"""Where a stream function stands that waits for something."""

from __future__ import annotations

import linecache
from types import FrameType
from typing import Any

__all__ = ["describe"]

# What waits for what is followed for so many steps.
_DEPTH = 50


def describe(task: Any) -> str | None:
    """Say what the stream function that a task runs is waiting for, outermost frame first."""
    lines = [line for frame in _frames(task.get_coro().generator) for line in _lines(frame)]
    return "it was waiting here:\n" + "\n".join(lines) if lines else None


def _frames(waiting: Any) -> list[FrameType]:
    frames = []
    for _ in range(_DEPTH):
        if waiting is None:
            break
        frame = _first(waiting, "ag_frame", "cr_frame", "gi_frame")
        if frame is not None:
            frames.append(frame)
        waiting = _first(waiting, "ag_await", "cr_await", "gi_yieldfrom")
    return frames


def _first(value: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(value, name, None))), None)


def _lines(frame: FrameType) -> list[str]:
    code, number = frame.f_code, frame.f_lineno
    lines = [f'  File "{code.co_filename}", line {number}, in {code.co_name}']
    text = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return [*lines, f"    {text}"] if text else lines
