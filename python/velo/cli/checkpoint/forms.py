"""Keys and states as JSON, and back: types that JSON lacks have a name with `$`.

| value | JSON |
| --- | --- |
| `tuple`, `set`, `frozenset` | `{"$tuple": [...]}`, `{"$set": [...]}`, `{"$frozenset": [...]}` |
| `bytes`, `bytearray` | `{"$bytes": "base64"}`, `{"$bytearray": "base64"}` |
| a float that is no number | `{"$float": "nan"}` |
| `complex` | `{"$complex": [re, im]}` |
| `date`, `time`, `datetime` | `{"$date": "2026-05-01"}`, `{"$time": ...}`, `{"$datetime": ...}` |
| `timedelta` | `{"$timedelta": [days, seconds, microseconds]}` |
| a dict with other keys than text | `{"$dict": [[key, value], ...]}` |
| `UUID`, and a number that is no float | `{"$uuid": "..."}`, `{"$ratio": [n, d]}`, both in keys |
| anything else | `{"$codec": "base64", "repr": "..."}` |

A key cannot be a list, so in keys a list stands for a tuple.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Hashable
from datetime import date, datetime, time, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

from velo import _core

__all__ = ["key_form", "key_of", "value_form", "value_of"]

_LONGEST = 100


def key_form(key: Hashable) -> Any:
    """Return the JSON of a key."""
    if type(key) is tuple:
        return [key_form(item) for item in key]
    if isinstance(key, frozenset):
        return {"$frozenset": [key_form(item) for item in key]}
    if isinstance(key, UUID):
        return {"$uuid": str(key)}
    if isinstance(key, Fraction):
        return {"$ratio": [key.numerator, key.denominator]}
    return value_form(key)


def key_of(form: Any) -> Hashable:
    """Return the key of a JSON value.

    Raises:
        ValueError: When it is none of a key.

    """
    if isinstance(form, list):
        return tuple(map(key_of, form))
    if isinstance(form, dict) and len(form) == 1:
        ((name, inner),) = form.items()
        if name == "$frozenset":
            return frozenset(map(key_of, inner))
        if name == "$uuid":
            return UUID(inner)
        if name == "$ratio":
            return Fraction(*inner)
    key = value_of(form)
    try:
        hash(key)
    except TypeError:
        raise ValueError("an object is no key") from None
    return key  # type: ignore[no-any-return]


def value_form(value: Any) -> Any:
    """Return the JSON of a value of the codec."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return [value_form(item) for item in value]
    if kind is dict:
        if all(type(name) is str and not name.startswith("$") for name in value):
            return {name: value_form(item) for name, item in value.items()}
        return {"$dict": [[value_form(name), value_form(item)] for name, item in value.items()]}
    if kind in _ITEMS:
        return {f"${kind.__name__}": [value_form(item) for item in value]}
    if kind in (bytes, bytearray):
        return {f"${kind.__name__}": base64.b64encode(value).decode()}
    if kind is complex:
        return {"$complex": [value_form(value.real), value_form(value.imag)]}
    if kind is timedelta:
        return {"$timedelta": [value.days, value.seconds, value.microseconds]}
    if kind in (date, time, datetime) and not getattr(value, "fold", 0):
        return {f"${kind.__name__}": value.isoformat()}
    shown = repr(value)[:_LONGEST]
    return {"$codec": base64.b64encode(_core.dumps(value)).decode(), "repr": shown}


def value_of(form: Any) -> Any:
    """Return the value of its JSON.

    Raises:
        ValueError: When a name with `$` is unknown, or has no such value.

    """
    if isinstance(form, list):
        return [value_of(item) for item in form]
    if not isinstance(form, dict):
        return form
    name = next(iter(form), "")
    if not name.startswith("$"):
        return {name: value_of(item) for name, item in form.items()}
    try:
        return _MADE[name](form[name])
    except KeyError:
        raise ValueError(f"`{name}` names no type") from None
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"`{name}` cannot be {form[name]!r}: {error}") from None


_ITEMS = (tuple, set, frozenset)
_MADE: dict[str, Callable[[Any], Any]] = {
    "$tuple": lambda items: tuple(map(value_of, items)),
    "$set": lambda items: set(map(value_of, items)),
    "$frozenset": lambda items: frozenset(map(value_of, items)),
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$bytearray": lambda text: bytearray(base64.b64decode(text, validate=True)),
    "$float": float,
    "$complex": lambda parts: complex(*map(value_of, parts)),
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$datetime": datetime.fromisoformat,
    "$timedelta": lambda parts: timedelta(*parts),
    "$dict": lambda pairs: {value_of(name): value_of(item) for name, item in pairs},
    "$codec": lambda text: _core.loads(base64.b64decode(text, validate=True), False),
}
