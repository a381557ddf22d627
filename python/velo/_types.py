"""Stand-ins for names of `typing`, whose import takes as long as that of all of velo.

Type checkers see the real names. At run time, the parameters of a class show only in the repr of
`StreamFn[int, str]`.
"""

from __future__ import annotations

TYPE_CHECKING = False

__all__ = ["TYPE_CHECKING", "Any", "Generic", "TypeVar", "overload"]

if TYPE_CHECKING:
    from typing import Any, Generic, TypeVar, overload
else:
    from types import GenericAlias

    Any = object

    def TypeVar(name, *constraints):
        """Return the name of the parameter."""
        return name

    class Generic:
        """The base of classes with parameters."""

        def __class_getitem__(cls, parameters):
            return cls if cls is Generic else GenericAlias(cls, parameters)

    def overload(function):
        """Return the function: only type checkers need its other signatures."""
        return function
