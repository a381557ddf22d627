"""Turns bytes into events: NDJSON and CSV. Never raises for what a line holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import click
import orjson

from velo import _core

__all__ = ["BadLine", "Burst", "Csv", "Ndjson", "Parser", "Rules"]

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadLine:
    """A line that holds no event, and why.

    Attributes:
        after: How many events of the same burst came before it.

    """

    where: str
    number: int
    why: str
    after: int = 0

    def __str__(self) -> str:
        place = f"{self.where}:{self.number}" if self.where else f"line {self.number}"
        return f"{place}: {self.why}"


@dataclass
class Burst:
    """Events in order, the bad lines that lay between them, and how far the input was read."""

    events: list[Any] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    position: int = 0

    def cut(self, events: int) -> None:
        """Keep so many events, and the bad lines before the last of them."""
        del self.events[events:]
        self.bad = [line for line in self.bad if line.after < events]

    def cut_at_bad(self) -> None:
        """Keep what came up to the first bad line."""
        del self.events[self.bad[0].after :]
        del self.bad[1:]


@dataclass(frozen=True)
class Rules:
    """What makes an event of a line, in any input.

    Attributes:
        key: A field that every event must have, and not empty: it names the event's stream.
        numbers: CSV: whether fields that look like numbers become some. Without it every value is
            text as it stands.
        text: CSV: fields that stay text whatever they look like.
        null: CSV: values that mean None, besides the empty one.

    """

    key: str | None = None
    numbers: bool = True
    text: Sequence[str] = ()
    null: Sequence[str] = ()


class Parser(Protocol):
    """Makes events of the bytes of one file, as they come."""

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return what is complete."""
        ...

    def end(self) -> Burst:
        """Return what the file ends with."""
        ...


class Ndjson:
    """One JSON value a line.

    Args:
        name: What to call the file in messages; empty if there is no need to.
        rules: What makes an event.

    """

    def __init__(self, name: str, rules: Rules) -> None:
        self._name = name
        self._key = rules.key
        self._number = 0
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
        return self._take(rest) if rest else Burst()

    def _take(self, text: bytes) -> Burst:
        if self._number == 0:
            text = text.removeprefix(_BOM)
        lines = text.split(b"\n")
        first = self._number + 1
        self._number += len(lines)
        try:
            events = list(map(orjson.loads, lines))
            if self._key is not None:
                _need_keys(events, self._key)
        except (ValueError, TypeError, LookupError):
            return self._one_by_one(lines, first)
        return Burst(events)

    def _one_by_one(self, lines: list[bytes], first: int) -> Burst:
        burst = Burst()
        for number, line in enumerate(lines, first):
            try:
                event = orjson.loads(line)
                why = None if self._key is None else _key_problem(event, self._key)
            except orjson.JSONDecodeError as error:
                if not line.strip():
                    continue
                # The parser's own message counts lines too; each line is a document of its own.
                why = f"not JSON: {error.msg.partition(':')[0]} at column {error.colno}"
            if why is None:
                burst.events.append(event)
            else:
                burst.bad.append(BadLine(self._name, number, why, len(burst.events)))
        return burst


def _need_keys(events: list[Any], name: str) -> None:
    """Raise something if any of the events has no usable key."""
    if None in {event[name] for event in events}:  # a list, or a dict, has no hash
        raise ValueError


def _key_problem(event: Any, name: str) -> str | None:
    try:
        key = event[name]
    except KeyError:
        return f"no field `{name}`"
    except (TypeError, IndexError):
        return f"not an object with a field `{name}`"
    if key is None:
        return f"`{name}` is empty"
    if isinstance(key, list | dict):
        return f"`{name}` is a {type(key).__name__}, which cannot be a key"
    return None


class Csv:
    """Comma-separated values with a header: an event is a dict of its fields.

    Numbers are what reads back as the same number. `007`, `+49`, `1_000` and `12E4` stay text,
    because they are codes more often than numbers; so do whole numbers beyond 64 bits.

    Args:
        name: What to call the file in messages; empty if there is no need to.
        rules: What makes an event.

    """

    def __init__(self, name: str, rules: Rules) -> None:
        self._name = name
        self._rules = rules
        self._parser = _core.CsvParser(self._start, rules.numbers, list(rules.null))

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return what is complete.

        Raises:
            click.UsageError: When the header is none, has a field twice, or lacks one that is
                needed.

        """
        return self._burst(data, last=False)

    def end(self) -> Burst:
        """Return what the file ends with.

        Raises:
            click.UsageError: As `feed`.

        """
        return self._burst(b"", last=True)

    def _burst(self, data: bytes, *, last: bool) -> Burst:
        try:
            events, bad = self._parser.feed(data, last)
        except ValueError as error:
            raise click.UsageError(f"{self._header()} cannot be read: {error}") from None
        return Burst(events, [BadLine(self._name, line, why, after) for after, line, why in bad])

    def _start(self, header: list[str]) -> tuple[int | None, list[int]]:
        """Look at the header. Return the index of the key's field, and of those that stay text."""
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise click.UsageError(f"{self._header()} has `{twice}` twice; name its fields apart")

        def index(option: str, name: str) -> int:
            if name not in header:
                there_are = ", ".join(f"`{field}`" for field in header)
                raise click.UsageError(
                    f"`{option} {name}`: {self._header()} has no such field; it has {there_are}"
                )
            return header.index(name)

        key = self._rules.key
        return (
            None if key is None else index("--key", key),
            [index("--text", name) for name in self._rules.text],
        )

    def _header(self) -> str:
        return f"the CSV header of `{self._name}`" if self._name else "the CSV header"
