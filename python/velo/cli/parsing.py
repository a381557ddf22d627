"""Turns bytes into events: NDJSON and CSV. Never raises for what a line holds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from velo.cli.convert import Converter

__all__ = ["BadLine", "Burst", "Lines", "Parser"]

_BURST = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadLine:
    """A line that holds no event, and why."""

    number: int
    why: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.why}"


@dataclass
class Burst:
    """Events in order, the bad lines that lay between them, and how far the input was read."""

    events: list[Any] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    position: int = 0


class Lines:
    """The lines of a source of bytes, as soon as they are complete.

    Attributes:
        number: The number of the line that was taken last, from 1.
        before_read: Called before each read. A read may take long, so what was held back should go.

    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self.number = 0
        self.before_read: Callable[[], None] = lambda: None
        self._read = read
        self._ready: Iterator[bytes] = iter(())
        self._partial: list[bytes] = []
        self._over = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> bytes:
        while (line := next(self._ready, None)) is None:
            self._fill()
        self.number += 1
        if self.number == 1:
            return line.removeprefix(_BOM)
        return line

    def _fill(self) -> None:
        if self._over:
            raise StopIteration
        self.before_read()
        data = self._read()
        if not data:
            self._over = True
            rest = b"".join(self._partial)
            self._ready = iter([rest] if rest else [])
            return
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._partial, whole[0]])
            self._partial.clear()
            self._ready = iter(whole)
        if rest:
            self._partial.append(rest)


class Parser:
    """Lines in, bursts of events out.

    With a `key`, a line whose event has no such field, or an empty one, is a bad line: it belongs
    to no stream. A `strict` parser ends at the first bad line, a `limit` after so many events.
    """

    def __init__(
        self,
        format: str,
        *,
        key: str | None = None,
        limit: int | None = None,
        strict: bool = False,
        converter: Converter | None = None,
    ) -> None:
        self._parse = self._ndjson if format == "ndjson" else self._csv
        self._key = key
        self._limit = limit
        self._strict = strict
        self._converter = converter or Converter()

    def parse(self, lines: Lines, emit: Callable[[Burst], None]) -> None:
        """Give bursts to `emit`: when one is large enough, or more has to be waited for.

        Stops early by letting through what `emit` raises.
        """
        burst, taken = Burst(), 0

        def flush() -> None:
            nonlocal burst
            if burst.events or burst.bad:
                whole, burst = burst, Burst()
                emit(whole)

        lines.before_read = flush
        for item in self._parse(lines):
            bad = item if isinstance(item, BadLine) else self._check_key(item, lines.number)
            if bad is not None:
                burst.bad.append(bad)
                if self._strict:
                    break
            else:
                burst.events.append(item)
                taken += 1
                if taken == self._limit:
                    break
            if len(burst.events) + len(burst.bad) >= _BURST:
                flush()
        flush()

    def _check_key(self, event: Any, number: int) -> BadLine | None:
        name = self._key
        if name is None:
            return None
        try:
            key = event[name]
        except KeyError:
            return BadLine(number, f"no field `{name}`")
        except (TypeError, IndexError):
            return BadLine(number, f"not an object with a field `{name}`")
        if key is None:
            return BadLine(number, f"`{name}` is empty")
        if isinstance(key, list | dict):
            return BadLine(number, f"`{name}` is a {type(key).__name__}, which cannot be a key")
        return None

    def _ndjson(self, lines: Lines) -> Iterator[Any]:
        for line in lines:
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if line.strip():
                    yield BadLine(lines.number, _json_problem(error))

    def _csv(self, lines: Lines) -> Iterator[Any]:
        # `\n` is what `Lines` splits at; inside quotes it belongs to the field.
        rows = csv.reader(_Text(lines), strict=True)
        header: list[str] = []
        convert: Callable[[list[str]], dict[str, Any]] | None = None
        while True:
            first = lines.number + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                yield BadLine(first, _csv_problem(error, first, lines.number))
                continue
            if not row:
                continue
            if convert is None:
                header = row
                convert = self._converter.rows(header)
            elif len(row) != len(header):
                yield BadLine(first, f"{_fields(len(row))}, where the header has {len(header)}")
            else:
                yield convert(row)


class _Text:
    """Lines as text. Goes on after a line that is not UTF-8, which a generator could not."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __iter__(self) -> _Text:
        return self

    def __next__(self) -> str:
        return next(self._lines).decode() + "\n"


def _json_problem(error: orjson.JSONDecodeError) -> str:
    # The parser's own message counts lines too, and each line is a document of its own to it.
    return f"not JSON: {error.msg.partition(':')[0]} at column {error.colno}"


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _csv_problem(error: Exception, first: int, last: int) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
    what = "a quote is never closed" if "unexpected end" in str(error) else str(error)
    return f"not CSV: {what}" + (f" (up to line {last})" if last > first else "")
