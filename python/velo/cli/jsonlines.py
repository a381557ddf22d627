"""Lines of JSON, read and written so that numbers keep their value.

orjson does the work. It knows whole numbers of 64 bits: it reads longer ones as floats, and refuses
to write them. Lines with such numbers, and values that orjson does not know, take a slower way.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import decimal
import enum
import json
import math
import os
from typing import Any

import orjson

from velo import _core

__all__ = ["dumps", "loads", "loads_exactly", "refuse"]

# Keys of a dict that are not texts take the slower way, because two of them could have one text.
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_PARTS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_DEEPEST = 200


def loads(line: bytes) -> Any:
    """Return the value of a line.

    Raises:
        ValueError: When it is not JSON.

    """
    return loads_exactly(line) if _core.has_long_number(line) else orjson.loads(line)


def loads_exactly(line: bytes) -> Any:
    """Parse a line with a number that may need more than 64 bits."""
    try:
        return json.loads(line.decode(), parse_constant=refuse, parse_float=_finite)
    except json.JSONDecodeError:
        orjson.loads(line)  # whose messages are those of all other lines
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def refuse(name: str) -> Any:
    """Refuse the constants that Python's parser takes for numbers and JSON does not have."""
    raise ValueError(f"`{name}` is no number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large for a float")
    return value


def dumps(value: Any) -> bytes:
    """Return a value as a line of JSON, with its line end.

    Values that JSON has no form for are written in these forms:

    - `nan` and infinities are null; sets are lists, sorted; tuples, deques and other sequences are
      lists, mappings objects;
    - dates and times are texts as in RFC 3339, `Decimal`, `UUID` and paths texts, an enum is its
      value, a data class an object, an array of NumPy a list.

    Raises:
        TypeError: When a part of the value has none of these forms; the message names the part.

    """
    try:
        return orjson.dumps(value, _plain, _OPTIONS)
    except TypeError:
        # A part of it is an integer beyond 64 bits, or a value that the error has to name.
        try:
            text = json.dumps(_simple(value, 0), ensure_ascii=False, separators=(",", ":"))
            return text.encode() + b"\n"
        except UnicodeEncodeError:
            raise TypeError(
                "a text with half of a surrogate pair has no form in JSON; "
                "have the function replace it"
            ) from None
        except ValueError as error:  # a number of more digits than Python converts
            raise TypeError(str(error)) from None


def _plain(value: Any) -> Any:
    """Return a replacement that orjson knows, for a value that it does not know."""
    if isinstance(value, set | frozenset):
        # Sorted, because the order of hashes differs between processes.
        try:
            return sorted(value)
        except TypeError:
            return sorted(value, key=repr)
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str):
            return path
    if isinstance(value, collections.abc.Mapping):
        return dict(value)
    kind = type(value)
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()  # an array that does not lie in one piece, or of texts or dates
    if isinstance(value, collections.abc.Sequence | collections.deque) and not isinstance(
        value, bytes | bytearray | memoryview | str
    ):
        return list(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")  # of pydantic
    hint = {
        "bytes": ", as `.hex()` gives",
        "bytearray": ", as `.hex()` gives",
        "memoryview": ", as `.hex()` gives",
        "DataFrame": ", as `.to_dict()` gives",
        "Series": ", as `.to_list()` gives",
        "timedelta": ", as `.total_seconds()` gives",
    }.get(kind.__qualname__, "")
    raise TypeError(
        f"`{kind.__qualname__}` has no form in JSON; have the function yield a plain value for it"
        f"{hint}"
    )


def _simple(value: Any, depth: int) -> Any:
    """Return the value built of dicts, lists, texts, numbers, booleans and None alone."""
    if depth > _DEEPEST:
        raise TypeError(f"a value that is nested more than {_DEEPEST} deep has no form in JSON")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, enum.Enum):
        return _simple(value.value, depth + 1)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        members = {_name(name): _simple(item, depth + 1) for name, item in value.items()}
        if len(members) < len(value):
            raise TypeError(
                "two keys of a dict are one name in JSON, as are `1` and `'1'`; have the function "
                "yield a dict of texts"
            )
        return members
    if isinstance(value, list | tuple):
        return [_simple(item, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _simple(getattr(value, field.name), depth + 1) for field in fields}
    try:
        return orjson.loads(orjson.dumps(value, option=_PARTS))
    except TypeError:
        return _simple(_plain(value), depth + 1)


def _name(name: Any) -> str:
    """Return a key of a dict as the name of a member of a JSON object."""
    if isinstance(name, str):
        return str(name)
    if isinstance(name, int) and not isinstance(name, bool | enum.Enum):
        return str(int(name))
    try:
        ((text, _),) = orjson.loads(orjson.dumps({name: 0}, option=_PARTS)).items()
    except TypeError:
        kind = type(name).__qualname__
        raise TypeError(
            f"a `{kind}` cannot be the name of a member of a JSON object; "
            "have the function yield a dict of texts"
        ) from None
    return str(text)
