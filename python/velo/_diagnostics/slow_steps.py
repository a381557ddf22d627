"""Warnings about functions that hold up their event loop."""

from __future__ import annotations

import warnings

from velo.errors import SlowStepWarning

__all__ = ["warn", "warn_of_neighbour"]

# The minimum number of seconds between two warnings about streams of one worker.
WARN_EVERY = 60.0

# Whether this process is a worker.
in_worker = False

_named: set[str] = set()


def warn(function: str, seconds: float) -> None:
    """Warn of a slow step of a function, once for each function."""
    if function in _named:
        return
    _named.add(function)
    where, advice = "the event loop", 'run it in a worker (`mode="process"`), or '
    if in_worker:
        where, advice = "all streams of the worker that it runs inline in", ""
    warnings.warn(
        f"a step of the stream function `{function}` held up {where}, for {seconds * 1000:.0f} ms; "
        f"{advice}await what it waits for",
        SlowStepWarning,
        stacklevel=2,
    )


def warn_of_neighbour(stream: str, seconds: float) -> None:
    """Warn of a stream whose function holds up the other streams of its worker."""
    warnings.warn(
        f"a step of stream `{stream}` held up the other streams of its worker for "
        f"{seconds * 1000:.0f} ms; let it `await` now and then, or give its function more "
        "`workers`: if this continues, other streams move to those",
        SlowStepWarning,
        stacklevel=2,
    )
