"""What annotations need of `typing`, whose import takes as long as all of velo's.

Type checkers see the real ones. Here, a parameter of a class leaves no trace but in what
`StreamFn[int, str]` shows.
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
        """Stand for a parameter."""
        return name

    class Generic:
        """The base of classes with parameters."""

        def __class_getitem__(cls, parameters):
            return cls if cls is Generic else GenericAlias(cls, parameters)

    def overload(function):
        """Leave one of several signatures to type checkers."""
        return function
