"""What CSV fields become: numbers where they look like numbers, None where they are empty.

Only what reads back as the same number is converted. `007`, `+49`, `1_000` and `12E4` stay text,
because they are codes more often than numbers; so do whole numbers beyond 64 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

__all__ = ["Converter"]

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)
_REAL = re.compile(r"-?((0|[1-9][0-9]*)?\.[0-9]+|(0|[1-9][0-9]*)\.?)([eE][+-][0-9]+)?", re.ASCII)
# Values repeat (years, delays, codes), so most conversions are one look into a dict. Past so many
# different ones they do not repeat enough to be worth the memory.
_REMEMBERED = 100_000


class Converter:
    """Makes events of CSV rows.

    Args:
        numbers: Whether to convert at all; without it every value is text as it stands.
        text: Fields that stay text whatever they look like.
        null: Values that mean None, besides the empty one.

    """

    def __init__(
        self, *, numbers: bool = True, text: Sequence[str] = (), null: Sequence[str] = ()
    ) -> None:
        self._numbers = numbers
        self._text = text
        self._null = null

    def rows(self, header: list[str]) -> Callable[[list[str]], dict[str, Any]]:
        """Return what makes an event of a row.

        Raises:
            click.UsageError: When a header is ambiguous, or lacks a field that must stay text.

        """
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise click.UsageError(f"the CSV header has `{twice}` twice; name its fields apart")
        for name in self._text:
            if name not in header:
                raise click.UsageError(f"`--text {name}`: the CSV header has no such field")
        if not self._numbers:
            return lambda row: dict(zip(header, row, strict=True))
        value = _Values(self._null).__getitem__
        text = [(name, header.index(name)) for name in self._text]

        def convert(row: list[str]) -> dict[str, Any]:
            event = dict(zip(header, map(value, row), strict=True))
            for name, index in text:
                event[name] = row[index]
            return event

        return convert


class _Values(dict[str, Any]):
    """What each text means, worked out once."""

    def __init__(self, null: Sequence[str]) -> None:
        super().__init__(dict.fromkeys(["", *null]))

    def __missing__(self, text: str) -> Any:
        value = _value(text)
        if len(self) < _REMEMBERED:
            self[text] = value
        return value


def _value(text: str) -> Any:
    if _WHOLE.fullmatch(text):
        whole = int(text)
        return whole if -(2**63) <= whole < 2**63 else text
    if _REAL.fullmatch(text):
        real = float(text)
        return real if math.isfinite(real) else text
    return text
