"""The warning about an inline function that holds up its event loop."""

from __future__ import annotations

import warnings

from velo.errors import SlowStepWarning

__all__ = ["warn"]

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
