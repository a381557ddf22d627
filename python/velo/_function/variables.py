"""The variables that a function uses besides its own: global ones, and those around it.

A function that travels by value takes their values along.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Snapshot", "name_of_unpicklable"]

# The most functions that use one another and are searched.
_DEEPEST = 8
_GONE = object()

# A namespace or a cell, the name of a variable, and its value.
_Variable = tuple[dict[str, Any] | types.CellType, str, Any]


class Snapshot:
    """The variables of functions at one moment.

    Args:
        functions: The functions.
        by_value: Whether a function that they use travels by value with them.

    """

    def __init__(self, functions: list[Any], by_value: Callable[[Any], bool]) -> None:
        self._seen: list[_Variable] = []
        known: set[int] = set()
        left = list(functions)
        while left and len(known) < 1 << _DEEPEST:
            function = left.pop()
            if id(function) in known:
                continue
            known.add(id(function))
            for variable in _variables(function):
                self._seen.append(variable)
                if isinstance(variable[2], types.FunctionType) and by_value(variable[2]):
                    left.append(variable[2])

    def has_changed(self) -> bool:
        """Return whether one of the names stands for another object now."""
        return any(_value(place, name) is not value for place, name, value in self._seen)


def name_of_unpicklable(function: Any, plain: Callable[[Any], Any], depth: int = 0) -> str | None:
    """Return what to call a variable that a function uses and that cannot be pickled, if any.

    Args:
        function: The function.
        plain: Returns the function inside of another.
        depth: How many functions use one another up to here.

    """
    import cloudpickle

    if depth > _DEEPEST:
        return None
    for _, name, value in _variables(plain(function)):
        try:
            cloudpickle.dumps(value)
        except Exception:
            inner = name_of_unpicklable(value, plain, depth + 1)
            return f"`{name}`" if inner is None else f"{inner} of `{name}`"
    return None


def _variables(function: Any) -> Iterator[_Variable]:
    if not isinstance(function, types.FunctionType):
        return
    code, names = function.__code__, function.__globals__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield cell, name, _value(cell, name)
    for name in _names(code):
        if name in names:
            yield names, name, names[name]


def _value(place: dict[str, Any] | types.CellType, name: str) -> Any:
    if isinstance(place, dict):
        return place.get(name, _GONE)
    try:
        return place.cell_contents
    except ValueError:  # it is empty
        return _GONE


def _names(code: types.CodeType) -> set[str]:
    """Return the names that code uses, with those of the functions that it defines."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))
