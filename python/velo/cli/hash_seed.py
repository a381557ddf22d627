"""The hash seed, on which the order of a set of texts depends.

A resumed run and a replayed recording must repeat the earlier steps exactly, including the order of
sets. So `velo run`, `velo record` and `velo replay` always use the same seed, unless
`PYTHONHASHSEED` gives another one. Python reads the seed only when an interpreter starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["VARIABLE", "current", "fix", "restart"]

VARIABLE = "PYTHONHASHSEED"
_COMMANDS = ("run", "record", "replay")
_FIXED = "0"


def fix(arguments: Sequence[str]) -> None:
    """Start the interpreter again with the seed, if the command needs a seed and has none."""
    wanted = (
        len(arguments) > 1 and arguments[1] in _COMMANDS and not {"-h", "--help"} & {*arguments}
    )
    if wanted and VARIABLE not in os.environ:
        restart(_FIXED)


def restart(seed: str) -> None:
    """Start this program again with another seed. Returns only if that is impossible."""
    frozen = getattr(sys, "frozen", False) or not sys.executable
    if frozen or sys.flags.ignore_environment or not sys.orig_argv:
        return
    environment = {**os.environ, VARIABLE: seed}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def current() -> str:
    """Return the seed of this process, or `random`."""
    return os.environ.get(VARIABLE) or "random"
