"""Turns bytes of CSV into events. Raises for an unusable header, never for other lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from velo import _core
from velo._csv import BOM, Fields, places_of, sniff
from velo.cli.keys import Written
from velo.cli.parsing import BadLine, Burst, Rules, names_of

__all__ = ["Csv"]

_SEPARATOR = re.compile(rb'"?sep=([ -~\t])"?\r?')
# A first line without an end is taken for the header from this length on, in bytes.
_LONGEST_HEAD = 16 << 20


class Csv:
    """Delimited values with a header: an event is a dict of its fields.

    A value becomes a number only if the number is written back as the same text. `007`, `+49`,
    `1_000` and `12E4` stay text, because they are codes more often than numbers; so do whole
    numbers beyond 64 bits.

    Args:
        name: The name of the file in messages; empty if messages need none.
        rules: How a line becomes an event.

    """

    def __init__(self, name: str, rules: Rules) -> None:
        self._name = name
        self._rules = rules
        self._parser: _core.CsvParser | None = None
        self._head = b""
        self._restarted = False
        # Lines that were taken before the parser began.
        self._before = 0

    def feed(self, data: bytes) -> Burst:
        """Take the next bytes, and return the complete events.

        Raises:
            click.UsageError: When the header is no header, has a field twice, or lacks a field
                that an option names.

        """
        return self._burst(data, last=False)

    def end(self) -> Burst:
        """Return the events at the end of the file.

        Raises:
            click.UsageError: As `feed`.

        """
        return self._burst(b"", last=True)

    def restart(self) -> None:
        """Begin another file of the same name, or the same file from its beginning.

        Its header may be the same, another one, or missing: a file that was truncated may go on
        without a header.
        """
        self._head = b""
        self._before = 0
        if self._parser is not None:
            self._parser.restart()
            self._restarted = True

    def _burst(self, data: bytes, *, last: bool) -> Burst:
        if self._parser is None:
            # The delimiter is found in the first line, of which an empty file has none.
            data = self._head = self._head + data
            text = data.removeprefix(BOM)
            if not text or (b"\n" not in data and len(data) < _LONGEST_HEAD and not last):
                return Burst()
            data = self._begin(text)
        assert self._parser is not None
        try:
            rows = self._parser.feed(data, last)
        except ValueError as error:
            hint = "; `--encoding` says what else it is" if "not UTF-8" in str(error) else ""
            raise click.UsageError(f"{self._header()} cannot be read: {error}{hint}") from None
        if self._restarted and self._parser.judged is not None:
            self._tell_judged(self._parser.judged)
        events = rows.events
        if self._rules.keys is not None:
            for key in rows.keys:
                self._rules.keys.written[id(events[key.place])] = Written(key.text)
        before = self._before
        return Burst(
            events,
            [BadLine(self._name, one.line + before, one.why, one.after) for one in rows.bad],
            lines=_Lines(memoryview(rows.lines).cast("Q"), before),
            where=self._name,
        )

    def _begin(self, data: bytes) -> bytes:
        """Make the parser, and return the bytes that it parses."""
        delimiter = self._rules.delimiter
        line, _, rest = data.partition(b"\n")
        said = _SEPARATOR.fullmatch(line)
        if said is not None:
            data, self._before = rest, 1  # a line for spreadsheets alone
            delimiter = delimiter or said[1].decode()
        if delimiter is None:
            delimiter = sniff(data)
            if delimiter != ",":
                what = "tabs" if delimiter == "\t" else f"`{delimiter}`"
                self._rules.say(
                    f"{self._name or 'the input'} has {what} between fields, it seems "
                    "(`--delimiter` says what it is)"
                )
        rules = self._rules
        self._parser = _core.CsvParser(
            *(self._start, rules.numbers, list(rules.null), ord(delimiter)),
            lines=Written if rules.lines else None,
        )
        self._head = b""
        return data

    def _tell_judged(self, judged: str) -> None:
        self._restarted = False
        name = self._name or "the input"
        if judged == "event":
            self._rules.say(
                f"{name} goes on without a header: its first line is taken for an event"
            )
        elif judged == "header":
            self._rules.say(f"{name} begins anew with another header")

    def _start(self, header: list[str]) -> Fields:
        """Check the header. Return the fields that have a conversion of their own."""
        try:
            places = places_of(header)
        except ValueError as error:
            raise click.UsageError(f"{self._header()} {error}") from None

        def index(option: str, name: str) -> int:
            if name not in places:
                raise click.UsageError(
                    f"`{option} {name}`: {self._header()} has no such field; "
                    f"it has {names_of(header, name)}"
                )
            return places[name]

        keys = self._rules.keys
        return Fields(
            key=None if keys is None else index("--key", keys.name),
            text=[index("--text", name) for name in self._rules.text],
        )

    def _header(self) -> str:
        return f"the CSV header of `{self._name}`" if self._name else "the CSV header"


class _Lines(Sequence[int]):
    """Line numbers that are counted from a line on."""

    def __init__(self, lines: memoryview[int], before: int) -> None:
        self._lines = lines
        self._before = before

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, at: Any) -> Any:
        return self._lines[at] + self._before
