"""The warnings about functions that hold up their event loop."""

from __future__ import annotations

import warnings

from velo.errors import SlowStepWarning

__all__ = ["warn", "warn_of_neighbour"]

_named: set[str] = set()


def warn(function: str, seconds: float) -> None:
    """Name the function, once."""
    if function in _named:
        return
    _named.add(function)
    warnings.warn(
        f"a step of the inline stream function `{function}` held up the event loop for "
        f'{seconds * 1000:.0f} ms; run it in a worker (`mode="process"`), or await what it waits '
        "for",
        SlowStepWarning,
        stacklevel=2,
    )


def warn_of_neighbour(stream: str, seconds: float) -> None:
    """Name a stream whose function holds up the other streams of its worker."""
    warnings.warn(
        f"a step of stream `{stream}` held up the other streams of its worker for "
        f"{seconds * 1000:.0f} ms; new streams go to other workers while it is open: let it "
        "`await` now and then, or give its function more `workers`",
        SlowStepWarning,
        stacklevel=2,
    )
