"""Which functions take a `state`: what outlives the worker that they run in."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["takes_state"]


def takes_state(function: Callable[..., Any]) -> bool:
    """Return whether a stream function is called with a state: its second parameter is `state`."""
    compose = sys.modules.get("velo._compose")
    plain = inspect.unwrap(function)
    if compose is not None and isinstance(plain, compose.Chain):
        return bool(plain.has_state)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False  # it has no signature to look at
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 and places[1].name == "state"
