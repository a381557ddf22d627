"""Processes that functions have started in workers. The functions own them: velo ends none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Child", "children"]

# The variable in a worker's environment, which every program that a function runs there inherits.
_MARK = b"VELO_WORKER="
# The begin of a forked child's title, unless the function has given the child another one.
_FORKED = "velo: child of worker "
# The longest part of a command that is shown, in characters.
_LONGEST = 100


class Child(NamedTuple):
    """A process that a function has started in a worker, or a descendant of one.

    Attributes:
        pid: The id of the process.
        worker: The process id of the worker.
        served: The process id of the worker's supervisor, or of the program that embeds it.
        alive: Whether the worker still runs.
        command: The command line, shortened.

    """

    pid: int
    worker: int
    served: int
    alive: bool
    command: str


def children() -> Iterator[Child]:
    """Find the children of workers among the processes of this user."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                if entry.stat().st_uid == os.geteuid() and (found := _child(int(entry.name))):
                    yield found


def _child(pid: int) -> Child | None:
    folder = Path("/proc", str(pid))
    words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    shown = " ".join(word.decode(errors="replace") for word in words)
    command = "".join(char if char.isprintable() else "?" for char in shown)[:_LONGEST]
    if command.startswith(_FORKED):
        worker, _, served = command.removeprefix(_FORKED).partition(" of ")
    elif not command or command.startswith("velo: "):
        return None  # it has ended, or is velo's own
    else:
        variables = (folder / "environ").read_bytes().split(b"\0")
        marks = [each[len(_MARK) :] for each in variables if each.startswith(_MARK)]
        if not marks:
            return None
        worker, _, served = marks[0].decode("ascii").partition("/")
    return Child(pid, int(worker), int(served), _is_worker(int(worker)), command)


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"velo: worker ")
    return False
