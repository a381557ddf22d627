"""Keys as a checkpoint stores them: keys that are equal in Python have the same bytes.

A key travels as the codec's bytes of its canonical form: 1, 1.0 and True are one key, and so are a
`str` and a `StrEnum` with its text, a named tuple and a tuple, and a time in two time zones.

| key | canonical form |
| --- | --- |
| whole number of any type | `int` |
| other number | `float` or `complex` where that is exact, else `{"ratio": (n, d)}` |
| `None`, `str`, `bytes`, `date`, `timedelta` | itself |
| `datetime` with a time zone | `datetime` in UTC |
| `uuid.UUID` | `{"uuid": bytes}` |
| `tuple` | `tuple` of canonical forms |
| `frozenset` | `list` of canonical forms, ordered by their bytes |
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

from velo import _core
from velo._function.key_text import shown
from velo.errors import CheckpointError

__all__ = ["pack", "unpack"]

# The deepest nesting of a key. The codec pickles a value that is nested twice as deeply.
_DEEPEST = 32


def pack(key: Hashable) -> bytes:
    """Return the bytes of a key.

    Raises:
        CheckpointError: When it has no canonical form; the message says why.

    """
    kind = type(key)
    if kind is str or kind is int or kind is bytes:
        return _core.dumps(key)
    try:
        return _core.dumps(_canonical(key, 0))
    except _Refused as refused:
        raise CheckpointError(
            f"the key {shown(key)} cannot be stored in a checkpoint: {refused}; have `key=` give a "
            "text, a number, bytes, a date, a UUID, or a tuple or frozenset of those"
        ) from None


def unpack(packed: bytes) -> Hashable:
    """Return a key that is equal to the one that was packed."""
    return _key_of(_core.loads(packed, False))


class _Refused(Exception):
    """A value has no canonical form."""


def _canonical(key: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise _Refused("it is nested too deeply")
    kind = type(key)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(key, numpy.generic):
        item = key.item()
        if type(item) is kind or item != key or hash(item) != hash(key):
            raise _Refused(_no_form(kind, "is equal to no plain value"))
        return _canonical(item, depth)
    for base, form in _FORMS.items():
        if isinstance(key, base):
            if _equality(kind) != _equality(base):
                break
            return form(key, depth)
    if _equality(kind) == _equality(object):
        raise _Refused(_no_form(kind, "is equal to nothing but itself, which no later run has"))
    raise _Refused(_no_form(kind, "compares in its own way"))


def _equality(kind: type) -> tuple[Any, Any]:
    return kind.__eq__, kind.__hash__


def _no_form(kind: type, why: str) -> str:
    return f"a `{kind.__qualname__}` {why}"


def _of_int(key: int, _depth: int) -> int:
    return int.__index__(key)


def _of_float(key: float, _depth: int) -> int | float:
    key = float.__float__(key)
    if math.isnan(key):
        raise _Refused("NaN is not equal to itself")
    return int(key) if key.is_integer() else key


def _of_complex(key: complex, depth: int) -> Any:
    if key.imag == 0:
        return _of_float(key.real, depth)
    if math.isnan(key.real) or math.isnan(key.imag):
        raise _Refused("NaN is not equal to itself")
    return complex(key.real + 0.0, key.imag)  # 0.0 for -0.0, which is equal to it


def _of_ratio(key: Decimal | Fraction, depth: int) -> Any:
    try:
        ratio = key.as_integer_ratio()
    except OverflowError:  # an infinite `Decimal`
        return _of_float(float(key), depth)
    except ValueError:
        raise _Refused("NaN is not equal to itself") from None
    if ratio[1] == 1:
        return ratio[0]
    try:
        as_float = float(key)
    except OverflowError:
        return {"ratio": ratio}
    return as_float if as_float == key else {"ratio": ratio}


def _of_datetime(key: datetime, _depth: int) -> datetime:
    if key.tzinfo is None or key.utcoffset() is None:
        return datetime(*key.timetuple()[:6], key.microsecond)
    try:
        return key.astimezone(UTC)
    except OverflowError:
        raise _Refused("in UTC it is beyond the years 1 to 9999") from None


def _of_time(key: time, _depth: int) -> time:
    if key.tzinfo is not None:
        raise _Refused("a `time` with a time zone is a time of no date")
    return time(key.hour, key.minute, key.second, key.microsecond)


def _of_tuple(key: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
    return tuple([_canonical(item, depth + 1) for item in tuple.__iter__(key)])


def _of_frozenset(key: frozenset[Any], depth: int) -> list[Any]:
    items = [_canonical(item, depth + 1) for item in frozenset.__iter__(key)]
    return sorted(items, key=_core.dumps)


# Of several types in a row, the first one is the one that a value's equality comes from.
_FORMS: dict[type, Callable[[Any, int], Any]] = {
    str: lambda key, _depth: str.__str__(key),
    bytes: lambda key, _depth: bytes.__bytes__(key),
    bool: _of_int,
    int: _of_int,
    float: _of_float,
    complex: _of_complex,
    Decimal: _of_ratio,
    Fraction: _of_ratio,
    tuple: _of_tuple,
    frozenset: _of_frozenset,
    datetime: _of_datetime,
    date: lambda key, _depth: date(key.year, key.month, key.day),
    time: _of_time,
    timedelta: lambda key, _depth: timedelta(key.days, key.seconds, key.microseconds),
    UUID: lambda key, _depth: {"uuid": key.bytes},
    type(None): lambda key, _depth: key,
}


def _key_of(form: Any) -> Hashable:
    """Return a key of this canonical form."""
    if isinstance(form, tuple):
        return tuple(map(_key_of, form))
    if isinstance(form, list):
        return frozenset(map(_key_of, form))
    if isinstance(form, dict):
        return UUID(bytes=form["uuid"]) if "uuid" in form else Fraction(*form["ratio"])
    key: Hashable = form
    return key
