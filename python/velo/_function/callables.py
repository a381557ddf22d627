"""The slow path of `signature`, for any callable."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["check", "takes_state"]


def takes_state(function: Callable[..., Any]) -> bool:
    """Return whether a stream function is called with a state: its second parameter is `state`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False  # it has no signature
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 and places[1].name == "state"


def check(function: Any) -> None:
    """Check that a callable can be a stream function.

    Raises:
        TypeError: When it cannot; the message says why.

    """
    name = getattr(function, "__qualname__", repr(function))
    plain = inspect.unwrap(function) if callable(function) else function
    while isinstance(plain, functools.partial):
        plain = inspect.unwrap(plain.func)
    if inspect.iscoroutinefunction(plain):
        raise TypeError(f"`{name}` never yields: a stream function is an `async def` with `yield`")
    if inspect.isgeneratorfunction(plain):
        raise TypeError(f"`{name}` is a plain generator: write it with `async def` and `async for`")
    if not _may_return_async_iterator(plain):
        kind = "a plain function" if inspect.isroutine(plain) else "no async generator function"
        raise TypeError(
            f"`{name}` is {kind}: a stream function is an async generator function, `async def` "
            "with `yield` (one that returns an async iterator must say so in its annotations)"
        )
    try:
        inspect.signature(function).bind(*([object()] * (2 if takes_state(function) else 1)))
    except TypeError as error:
        raise TypeError(
            f"`{name}` must take one argument, the events, or two, the events and `state`: {error}"
        ) from None
    except ValueError:
        pass  # it has no signature


def _may_return_async_iterator(function: Any) -> bool:
    if inspect.isasyncgenfunction(function):
        return True
    if inspect.isfunction(function) or inspect.ismethod(function):
        returns = getattr(function, "__annotations__", {}).get("return")
        return returns is not None or function.__name__ == "<lambda>"
    if inspect.isclass(function) or inspect.isbuiltin(function):
        return False
    return inspect.isasyncgenfunction(getattr(type(function), "__call__", None))  # noqa: B004
