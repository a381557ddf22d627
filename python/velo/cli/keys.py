"""The keys of a run: one stream for each value of a field, as it is written.

Texts are compared decoded, numbers and booleans as they stand in the input: `3.1` and `3.10` are
two keys, and so are `1`, `1.0` and `true`, which Python takes for one.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson

from velo import _core

__all__ = ["Keys", "Written", "form", "raw_member"]

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_value = json.JSONDecoder().raw_decode


class Written(NamedTuple):
    """A key that is neither a text nor a whole number: what stands in the input for it.

    A tuple, so that a checkpoint can store it; no key that stands in an input is one.
    """

    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def is_json(self) -> bool:
        """Whether it can be written as it is."""
        return self.text in ("true", "false") or _JSON_NUMBER.fullmatch(self.text) is not None


class Keys:
    """Gives the key of each event.

    An event is a plain value, which does not know how its key was written. So the parser notes
    the written form here, for the few events whose key is neither a text nor a whole number.

    Attributes:
        find: Returns the key of the next event.
        written: The keys of such events by the `id` of the event, until `keyed` asks for them.

    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.written: dict[int, Written] = {}
        self.find = _core.LineKeys(self._find)

    @property
    def asked(self) -> int:
        """The number of events whose key `keyed` has asked for."""
        return self.find.asked

    def _find(self, event: Any) -> Any:
        key = event[self.name]
        kind = type(key)
        if kind is not str and (kind is not int or (key == 0 and id(event) in self.written)):
            key = self.written.pop(id(event), None) or Written(orjson.dumps(key).decode())
        return key


def form(key: Any) -> Any:
    """Return the JSON value of a key in the output; `--resume` compares keys in this form."""
    return key.text if isinstance(key, Written) and not key.is_json else key


def raw_member(line: str, name: str) -> str | None:
    """Return the text of a member's value in a JSON object; of equal names, the last one counts."""
    found = None
    at = _skip(line, _skip(line, 0) + 1)
    while line[at] != "}":
        member, at = _value(line, at)
        at = _skip(line, _skip(line, at) + 1)
        end = _end(line, at)
        if member == name:
            found = line[at:end]
        at = _skip(line, end)
        if line[at] == ",":
            at = _skip(line, at + 1)
    return found


def _end(line: str, at: int) -> int:
    """Return where the value ends that begins there."""
    try:
        return _value(line, at)[1]
    except RecursionError:  # orjson has read it: it allows more levels
        depth = 0
        for part in _STRING_OR_BRACKET.finditer(line, at):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
            if depth == 0:
                return part.end()
        raise


def _skip(line: str, at: int) -> int:
    space = _SPACE.match(line, at)
    assert space is not None
    return space.end()
