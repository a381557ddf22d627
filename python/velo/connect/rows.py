"""CSV, row by row: each line or record is one row, and an event is a dict of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from velo import _core
from velo._csv import BOM, Fields, places_of, sniff
from velo.connect.errors import ConnectError

__all__ = ["NO_EVENT", "Csv", "Rows", "csv"]

NO_EVENT: Any = object()
"""What a header gives instead of an event."""


@dataclass(frozen=True)
class Csv:
    """The rules of a CSV source; see `csv`."""

    columns: tuple[str, ...] | None = None
    delimiter: str | None = None
    numbers: bool = True
    text: tuple[str, ...] = ()
    null: tuple[str, ...] = ()


def csv(
    columns: str | Iterable[str] | None = None,
    *,
    delimiter: str | None = None,
    numbers: bool = True,
    text: Iterable[str] = (),
    null: Iterable[str] = (),
) -> Csv:
    """Give a value for `decode=`: a record is a row of CSV, and its event a dict of the fields.

    Fields that are numbers become numbers, and empty ones None. What looks like a code stays text:
    `007`, `+49`, `1_000`. `velo run` reads CSV files by the same rules, but there a field may have
    line ends within quotes; where a source gives lines, a row is one line.

    Args:
        columns: The names of the fields, as a list or with commas. None: the first line of the
            file, response or object is a header. Sources whose records are messages have no first
            line, and need names.
        delimiter: What is between fields, one ASCII character. None: what the header says, or a
            comma where `columns` are given.
        numbers: Whether fields that look like numbers become some. Otherwise all fields are text as
            they stand.
        text: Fields that stay text whatever they look like.
        null: Values that mean None, besides the empty one.

    Raises:
        ValueError: When a setting does not fit.

    """
    names = columns.split(",") if isinstance(columns, str) else columns
    rules = Csv(
        None if names is None else tuple(names), delimiter, numbers, tuple(text), tuple(null)
    )
    if delimiter is not None and (
        len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0'
    ):
        raise ValueError(f"delimiter={delimiter!r}: one ASCII character")
    if rules.columns is not None:
        if not rules.columns or not all(rules.columns):
            raise ValueError(f"columns={columns!r}: each field has a name")
        try:
            _places_of_text(rules.columns, rules.text)
        except ValueError as error:
            raise ValueError(f"`columns` {error}") from None
    return rules


class Rows:
    """Makes events of the rows of one text; the first row is the header unless there are names."""

    def __init__(self, rules: Csv) -> None:
        self._rules = rules
        self._parser: _core.CsvParser | None = None
        if rules.columns is not None:
            delimiter = rules.delimiter or ","
            quoted = ['"' + name.replace('"', '""') + '"' for name in rules.columns]
            self._begin(delimiter.join(quoted).encode(), delimiter)

    @property
    def begun(self) -> bool:
        """Whether the names of the fields are known."""
        return self._parser is not None

    def __call__(self, row: bytes) -> Any:
        """Make an event of a row, or `NO_EVENT` of the header.

        Raises:
            ValueError: When it is no row of these fields.
            ConnectError: When the header is none.

        """
        row = row.removeprefix(BOM)
        if self._parser is None:
            try:
                self._begin(row, self._rules.delimiter or sniff(row))
            except ValueError as error:
                raise ConnectError(f"the CSV header cannot be read: {error}") from None
            return NO_EVENT
        rows = self._parser.feed(row, True)
        if rows.bad:
            raise ValueError(rows.bad[0].why)
        if len(rows.events) != 1:
            count = len(rows.events)
            raise ValueError(f"{count} rows of CSV: each record is one" if count else "no row")
        return rows.events[0]

    def _begin(self, header: bytes, delimiter: str) -> None:
        rules = self._rules
        parser = _core.CsvParser(self._start, rules.numbers, list(rules.null), ord(delimiter))
        parser.feed(header, True)
        self._parser = parser

    def _start(self, header: list[str]) -> Fields:
        try:
            return Fields(None, _places_of_text(header, self._rules.text))
        except ValueError as error:
            raise ConnectError(f"the CSV header {error}") from None


def _places_of_text(header: Sequence[str], text: Sequence[str]) -> list[int]:
    places = places_of(header)
    for name in text:
        if name not in places:
            raise ValueError(f"has no field `{name}`, which `text` names")
    return [places[name] for name in text]
