"""The seed of hashes: with another one, a set of texts has another order.

A run that is resumed, and a recording that is replayed, must do what was done before, to the order
of a set. So `velo run`, `velo record` and `velo replay` always have the same seed, unless
`PYTHONHASHSEED` says which. Only an interpreter that starts can be given one.
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
    """Have the interpreter start again with the seed, if it has none and the command needs it."""
    wanted = (
        len(arguments) > 1 and arguments[1] in _COMMANDS and not {"-h", "--help"} & {*arguments}
    )
    if wanted and VARIABLE not in os.environ:
        restart(_FIXED)


def restart(seed: str) -> None:
    """Start this program again, with another seed. Returns if that cannot be done."""
    frozen = getattr(sys, "frozen", False) or not sys.executable
    if frozen or sys.flags.ignore_environment or not sys.orig_argv:
        return
    environment = {**os.environ, VARIABLE: seed}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def current() -> str:
    """Return the seed of this process, or `random`."""
    return os.environ.get(VARIABLE) or "random"
