"""The environment variables that velo reads, each checked where it is read."""

from __future__ import annotations

import math
import os

__all__ = [
    "ADDED",
    "AT_FIRST",
    "KEEPER_FD",
    "ONE_THREAD",
    "ZYGOTE_FD",
    "check",
    "python",
    "seconds",
]

# As it was when velo was imported, and not what the program has made of it since.
AT_FIRST = dict(getattr(os.environ, "_data", os.environ))

# What tells a zygote where its supervisor is.
ZYGOTE_FD = "VELO_ZYGOTE_FD"
# What tells it where the keeper of its supervisor's checkpoint is.
KEEPER_FD = "VELO_KEEPER_FD"

# Each worker is one of several processes that share the cores: it must not start a pool of its own.
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# Variables of workers that their program may not have.
ADDED = (*ONE_THREAD, "PYTHONHASHSEED", "VELO_WORKER", ZYGOTE_FD, KEEPER_FD)

# What is on unless it is switched off, to measure what it costs or gives.
_SWITCHES = ("VELO_METRICS", "VELO_SPIN")


def seconds(name: str, default: float) -> float:
    """Return what a variable says, as a number of seconds.

    Raises:
        ValueError: When it is none; the message names the variable.

    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a number of seconds, at least 0, not {text!r}")
    return value


def python() -> str | None:
    """Return the Python that `VELO_PYTHON` names, which workers are to run in.

    Raises:
        ValueError: When it is no program.

    """
    path = os.environ.get("VELO_PYTHON")
    if path and not os.access(path, os.X_OK):
        raise ValueError(f"`VELO_PYTHON` must be the path of a Python interpreter, not {path!r}")
    return path or None


def check() -> None:
    """Check those that are read elsewhere.

    Raises:
        ValueError: When one makes no sense; the message names it.

    """
    for name in _SWITCHES:
        text = os.environ.get(name)
        if text not in (None, "", "0", "1"):
            raise ValueError(f"`{name}` must be 0 or 1, not {text!r}")
