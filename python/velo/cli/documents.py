"""Turns JSON that is not one value per line into events: an array, or values of several lines.

`json.dump` writes a list as such an array. The array is read as it comes: memory holds only one
of its elements.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import replace
from typing import Any

from velo.cli import jsonlines
from velo.cli.errors import Failure
from velo.cli.parsing import BadLine, Burst, Ndjson, Parser, Rules, key_problem, note_key

__all__ = ["Json"]

_SPACE = re.compile(r"[ \t\n\r]*")
# An incomplete text has its error within this distance of its end; an earlier error is a real one.
_NEAR = 64
# What opens and closes values, and what may hide a quote within a text.
_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_AFTER_NUMBER = frozenset(" \t\n\r,]")
_LARGE = 64 * 1024
# From this length on, in bytes, the parser is chosen before the first line has ended.
_LONG_LINE = 1 << 20


class Json:
    """A file of JSON: an array of events, values that take several lines, or NDJSON.

    Args:
        name: The name of the file in messages; empty if messages need none.
        rules: How a value becomes an event.
        whole: Whether a first line that is an array may be the whole file. In a pipe without
            `--format`, such a line is an event, which does not wait for the next line.

    """

    def __init__(self, name: str, rules: Rules, *, whole: bool = True) -> None:
        self._name = name
        self._rules = rules
        self._whole = whole
        self._parser: Parser | None = None
        self._head = b""

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return the complete events.

        Raises:
            Failure: When they are not JSON: the begin of the next value cannot be found.

        """
        if self._parser is None:
            self._head += data
            self._parser = self._choose(last=False)
            if self._parser is None:
                return Burst()
            data, self._head = self._head, b""
        return self._parser.feed(data)

    def end(self) -> Burst:
        """Return the events at the end of the file.

        Raises:
            Failure: As `feed`.

        """
        if self._parser is None:
            self._parser = self._choose(last=True) or Ndjson(self._name, self._rules)
            burst = self._parser.feed(self._head)
            self._head = b""
            last = self._parser.end()
            if not burst.events and not burst.bad:
                return last
            if not last.events and not last.bad:
                return burst
            return _joined(burst, last)
        return self._parser.end()

    def restart(self) -> None:
        """Another file begins under the same name, or the same one anew."""
        self._parser = None
        self._head = b""

    def _choose(self, *, last: bool) -> Parser | None:
        """Return the parser for a file with these first bytes; None while they do not decide."""
        head = self._head.removeprefix(codecs.BOM_UTF8).lstrip()
        if not head or (codecs.BOM_UTF8.startswith(head) and not last):
            return None
        lines = Ndjson(self._name, self._rules)
        if head[:1] not in (b"[", b"{"):
            return lines
        line, end, rest = head.partition(b"\n")
        if not end and len(head) < _LONG_LINE and not last:
            return None
        if line.strip() in (b"[", b"{"):
            return _Documents(self._name, self._rules)
        if head[:1] == b"{":
            return lines
        try:
            jsonlines.loads(line)
        except ValueError:
            return _Documents(self._name, self._rules)
        if not self._whole or rest.strip():
            return lines  # of arrays
        return _Documents(self._name, self._rules) if last else None


def _joined(first: Burst, then: Burst) -> Burst:
    shift = len(first.events)
    bad = [replace(line, after=line.after + shift) for line in then.bad]
    return Burst(
        [*first.events, *then.events],
        [*first.bad, *bad],
        lines=[*first.lines, *then.lines],
        where=first.where,
    )


class _Documents:
    """Values one after the other, or the elements of an array."""

    def __init__(self, name: str, rules: Rules) -> None:
        self._name = name
        self._rules = rules
        self._decoder = json.JSONDecoder(parse_constant=jsonlines.refuse)
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._line = 1
        self._array: bool | None = None
        self._over = False
        # In an array: whether a comma comes next, and whether the last token was one.
        self._comma = self._begun = False
        # An incomplete large value is parsed again only once it has come to its end, or, as it may
        # be none, once its text has grown by a half.
        self._enough = 0
        self._nesting = _Nesting()

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return the complete events."""
        return self._take(data, last=False)

    def end(self) -> Burst:
        """Return the events at the end of the file."""
        return self._take(b"", last=True)

    def restart(self) -> None:
        """Another file begins under the same name, or the same one anew."""
        self.__init__(self._name, self._rules)  # type: ignore[misc]

    def _take(self, data: bytes, *, last: bool) -> Burst:
        burst = Burst(where=self._name)
        try:
            self._text += self._decode.decode(data, last)
        except UnicodeDecodeError as error:
            raise self._wrong(f"not UTF-8: byte {error.object[error.start]:#04x}") from None
        if len(self._text) < self._enough and not last and not self._nesting.ends(self._text):
            return burst
        self._enough = 0
        at, numbers = 0, []
        while (step := self._next(at, last)) is not None:
            at, value, raw, line = step
            why = None
            if (keys := self._rules.keys) is not None:
                why = key_problem(value, keys.name)
                if why is None:
                    note_key(value, raw, keys)
            if why is None:
                burst.events.append(value)
                numbers.append(line)
            else:
                text = raw.replace("\n", " ").encode()  # no text of JSON has a line end in it
                burst.bad.append(BadLine(self._name, line, why, len(burst.events), text))
        burst.lines = numbers
        return burst

    def _next(self, at: int, last: bool) -> tuple[int, Any, str, int] | None:
        """Return where the next value ends, the value, its text and its line, if it is there."""
        text = self._text
        start = self._skip(text, at)
        if start == len(text):
            if last and (self._array and not self._over):
                raise self._wrong("the array has no end")
            return self._wait(start)
        if self._array is None:
            self._array = text[start] == "["
            if self._array:
                start = self._skip(text, start + 1)
        if self._array:
            if self._over:
                raise self._wrong("there is more behind the end of the array")
            if text[start : start + 1] == "]" and not self._begun:
                self._over = True
                return self._next(start + 1, last)
            if self._comma:
                if text[start : start + 1] not in (",", ""):
                    raise self._wrong("`,` or `]` expected behind an element")
                if start < len(text):
                    self._comma, self._begun = False, True
                    start = self._skip(text, start + 1)
            if start >= len(text):
                return self._wait(start)
        line = self._line
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text) - _NEAR or error.msg.startswith("Unterminated string")
            if cut and not last:
                return self._wait(start)
            self._line += text.count("\n", start, error.pos)
            raise self._wrong(f"{error.msg[:1].lower()}{error.msg[1:]}") from None
        except (ValueError, RecursionError) as error:
            raise self._wrong(str(error)) from None
        if text[end - 1] not in '"}]' and text[end : end + 1] not in _AFTER_NUMBER:
            # A number at the end of the text may go on in the next bytes.
            if not last and len(text) - end < _NEAR:
                return self._wait(start)
            if end < len(text):
                raise self._wrong(f"`,` or an end expected behind `{text[start:end]}`")
        self._line += text.count("\n", start, end)
        self._comma, self._begun = True, False
        return end, value, text[start:end], line

    def _wait(self, start: int) -> tuple[int, Any, str, int] | None:
        self._text = self._text[start:]
        left = len(self._text)
        self._enough = left * 3 // 2 if left > _LARGE else 0
        self._nesting = _Nesting()
        return None

    def _skip(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        assert space is not None
        self._line += text.count("\n", at, space.end())
        return space.end()

    def _wrong(self, why: str) -> Failure:
        where = f"{self._name}:{self._line}" if self._name else f"line {self._line}"
        return Failure(f"{where}: not JSON: {why}; what comes behind it was not read")


class _Nesting:
    """Finds the end of a value whose text grows. Looks at each character once."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quoted = False

    def ends(self, text: str) -> bool:
        """Return whether the value at the begin of the text ends in it."""
        at = self._at
        for found in _MARK.finditer(text, at):
            mark, at = found[0], found.end()
            if mark == '"':
                self._quoted = not self._quoted
            elif not self._quoted and mark in "[]{}":
                self._depth += 1 if mark in "[{" else -1
            if self._depth <= 0 and not self._quoted:
                return True
        # The character behind a backslash may be still to come.
        self._at = max(at, len(text) - text.endswith("\\"))
        return self._depth <= 0 and not self._quoted
