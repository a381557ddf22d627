"""Turns bytes into events: the parts that all formats share, and NDJSON. No line raises."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import orjson

from velo import _core
from velo.cli import jsonlines
from velo.cli.keys import Keys, Written, raw_member

__all__ = [
    "BadLine",
    "Burst",
    "Ndjson",
    "Parser",
    "Rules",
    "key_problem",
    "names_of",
    "note_key",
]

_BOM = b"\xef\xbb\xbf"
# The most field names that a message lists when a field is missing.
_MOST_NAMED = 20


def _nothing(message: str) -> None:
    pass


@dataclass(frozen=True)
class BadLine:
    """A line that holds no event, and the reason.

    Attributes:
        after: The number of events of the same burst before the line.
        text: What came, as one line of UTF-8; None: it is not kept, as of CSV.

    """

    where: str
    number: int
    why: str
    after: int = 0
    text: bytes | None = None

    def __str__(self) -> str:
        place = f"{self.where}:{self.number}" if self.where else f"line {self.number}"
        return f"{place}: {self.why}"


@dataclass
class Burst:
    """Events in order, the bad lines between them, and the position in the input.

    Attributes:
        lines: The line number of each event; a range where no line was skipped.
        where: The name of the input in messages; empty if messages need none.
        path: The path of the input.

    """

    events: list[Any] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    position: int = 0
    lines: Sequence[int] = ()
    where: str = ""
    path: str = ""

    def line(self, at: int) -> str:
        """Return the name of an event's line in messages."""
        return f"{self.where}:{self.lines[at]}" if self.where else f"line {self.lines[at]}"

    def cut(self, events: int) -> None:
        """Keep the first `most` events, and the bad lines before the last of them."""
        del self.events[events:]
        self.bad = [line for line in self.bad if line.after < events]

    def cut_at_bad(self) -> None:
        """Keep the events before the first bad line, and that line."""
        del self.events[self.bad[0].after :]
        del self.bad[1:]


@dataclass(frozen=True)
class Rules:
    """How a line becomes an event, in any input.

    Attributes:
        keys: The field with the key, which every event must have, and not empty; None: no key.
        numbers: CSV: whether a value that looks like a number becomes one. Otherwise every value
            stays text as it is written.
        text: CSV: the fields that always stay text.
        null: CSV: the values that mean None, besides the empty one.
        delimiter: CSV: the delimiter; None: it is found in the header.
        lines: Whether an event may be a `Line`, which the worker parses.
        say: Prints a message about an input.

    """

    keys: Keys | None = None
    numbers: bool = True
    text: Sequence[str] = ()
    null: Sequence[str] = ()
    delimiter: str | None = None
    lines: bool = False
    say: Callable[[str], object] = _nothing


class Parser(Protocol):
    """Turns the bytes of one file into events, as they come."""

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return the complete events."""
        ...

    def end(self) -> Burst:
        """Return what the file ends with."""
        ...

    def restart(self) -> None:
        """Another file begins under the same name, or the same one anew."""
        ...


class Ndjson:
    """One JSON value per line.

    Args:
        name: The name of the file in messages; empty if messages need none.
        rules: How a line becomes an event.

    """

    def __init__(self, name: str, rules: Rules) -> None:
        self._name = name
        self._keys = rules.keys
        self._lines = rules.lines
        self._say = rules.say
        self._number = 0
        # The first line is an array.
        self._array = False
        self._partial: list[bytes] = []

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return what is complete."""
        whole, end, rest = data.rpartition(b"\n")
        if not end:
            self._partial.append(data)
            return Burst()
        whole = b"".join([*self._partial, whole])
        self._partial = [rest] if rest else []
        return self._take(whole)

    def end(self) -> Burst:
        """Return what the file ends with."""
        rest = b"".join(self._partial)
        self._partial.clear()
        burst = self._take(rest) if rest else Burst()
        if self._array and self._number == 1:
            self._say(
                f"the only line of {self._name or 'the input'} is an array, which is one event; "
                "`--format json` makes an event of each of its elements"
            )
        return burst

    def restart(self) -> None:
        """Another file begins under the same name, or the same one anew."""
        self._number = 0
        self._partial.clear()

    def _take(self, text: bytes) -> Burst:
        if self._number == 0:
            text = text.removeprefix(_BOM)
        first = self._number + 1
        if self._lines:
            name = None if self._keys is None else self._keys.name
            found = _core.json_lines(text, name, Written)
            self._number += len(found)
            if None in found:
                return self._one_by_one(text.split(b"\n"), first, found)
            return Burst(found, lines=range(first, first + len(found)), where=self._name)
        lines = text.split(b"\n")
        self._number += len(lines)
        try:
            load = jsonlines.loads if _core.has_long_number(text) else orjson.loads
            events = list(map(load, lines))
            if self._keys is not None:
                self._need_keys(events, lines, text)
        except (ValueError, TypeError, LookupError):
            return self._one_by_one(lines, first)
        if first == 1:
            self._array = type(events[0]) is list
        return Burst(events, lines=range(first, first + len(events)), where=self._name)

    def _need_keys(self, events: list[Any], lines: list[bytes], text: bytes) -> None:
        """Raise an exception if any of the events has no usable key."""
        keys = self._keys
        assert keys is not None
        name = keys.name
        kinds = set(map(type, [event[name] for event in events]))
        if kinds <= _WORDS and not _MINUS_ZERO.search(text):
            return
        if not kinds <= _WORDS | _WRITTEN:
            raise ValueError
        for event, line in zip(events, lines, strict=True):
            note_key(event, line, keys)

    def _one_by_one(
        self, lines: list[bytes], first: int, found: Sequence[_core.Line | None] = ()
    ) -> Burst:
        burst = Burst(where=self._name)
        numbers: list[int] = []
        for number, (line, known) in enumerate(zip_longest(lines, found), first):
            if known is not None:
                burst.events.append(known)
                numbers.append(number)
                continue
            try:
                event = jsonlines.loads(line)
                why = None if self._keys is None else key_problem(event, self._keys.name)
            except orjson.JSONDecodeError as error:
                if not line.strip():
                    continue
                # The parser counts lines as well, but each line is a document of its own.
                why = f"not JSON: {error.msg.partition(':')[0]} at column {error.colno}"
            except ValueError as error:
                why = f"not JSON: {error}"
            if why is None:
                if self._keys is not None:
                    note_key(event, line, self._keys)
                burst.events.append(event)
                numbers.append(number)
            else:
                burst.bad.append(BadLine(self._name, number, why, len(burst.events), line))
        burst.lines = numbers
        if first == 1 and numbers[:1] == [1]:
            self._array = type(burst.events[0]) is list
        return burst


_WORDS = {str, int}
_WRITTEN = {float, bool}
# The only whole number whose value is not written as in the input.
_MINUS_ZERO = re.compile(rb":\s*-0\s*[,}]")


def note_key(event: Any, text: bytes | str, keys: Keys) -> None:
    """Note how the key of an event is written, if its value does not show it."""
    key = event[keys.name]
    if type(key) in _WRITTEN or (type(key) is int and key == 0):
        raw = raw_member(text if isinstance(text, str) else text.decode(), keys.name)
        if raw is not None and raw != "0":
            keys.written[id(event)] = Written(raw)


def key_problem(event: Any, name: str) -> str | None:
    """Return the reason why an event has no usable key; None if it has one."""
    try:
        key = event[name]
    except KeyError:
        return f"no field `{name}`; it has {names_of(list(event), name)}"
    except (TypeError, IndexError):
        if isinstance(event, list):
            return (
                f"an array, and no object with a field `{name}`; `--format json` makes an event of "
                "each of its elements"
            )
        return f"not an object with a field `{name}`"
    if key is None:
        return f"`{name}` is empty"
    if isinstance(key, list | dict):
        return f"`{name}` is a {type(key).__name__}, which cannot be a key"
    return None


def names_of(names: Sequence[str], missed: str) -> str:
    """Return names for a message; of many names, those that resemble the missing one."""
    if not names:
        return "none"
    if len(names) > _MOST_NAMED:
        like = difflib.get_close_matches(missed, names, n=3) or list(names[:3])
        return f"{len(names):,} fields, among them " + ", ".join(f"`{name}`" for name in like)
    return ", ".join(f"`{name}`" for name in names)
