"""Whether a callable can be a stream function, and whether it takes a `state`.

For nearly all functions, their code object answers both. The others need `inspect`, whose import
takes longer than that of velo: see `callables`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

from velo._types import Any

__all__ = ["check", "takes_state"]

# The same flags as in `inspect`.
_CO_VARARGS, _CO_VARKEYWORDS, _CO_ASYNC_GENERATOR = 0x04, 0x08, 0x200


def takes_state(function: Callable[..., Any]) -> bool:
    """Return whether a stream function is called with a state: its second parameter is `state`."""
    names = _parameters(function)
    if names is None:
        from velo._function import callables

        return callables.takes_state(function)
    return len(names) > 1 and names[1] == "state"


def check(function: Any) -> None:
    """Check that a callable can be a stream function.

    Raises:
        TypeError: When it cannot; the message says why.

    """
    names = _parameters(function)
    expected = names is not None and (len(names) == 1 or names[1:] == ("state",))
    if not expected or not function.__code__.co_flags & _CO_ASYNC_GENERATOR:
        from velo._function import callables

        callables.check(function)


def _parameters(function: Any) -> tuple[str, ...] | None:
    """Return the names of a plain function's parameters; None for anything else."""
    # An attribute could be `__wrapped__` or `__signature__`.
    if type(function) is not FunctionType or function.__dict__:
        return None
    code = function.__code__
    if code.co_kwonlyargcount or code.co_flags & (_CO_VARARGS | _CO_VARKEYWORDS):
        return None
    return code.co_varnames[: code.co_argcount]
