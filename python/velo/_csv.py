"""What all readers of CSV share beside the parser: the header and the delimiter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["BOM", "Fields", "places_of", "sniff"]

BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile(rb'"[^"]*"?')


class Fields(NamedTuple):
    """The columns of the fields that have a conversion of their own."""

    key: int | None
    text: list[int]


def places_of(header: Sequence[str]) -> dict[str, int]:
    """Return the place of each field by its name.

    Raises:
        ValueError: When two have the same.

    """
    places: dict[str, int] = {}
    for place, name in enumerate(header):
        if places.setdefault(name, place) != place:
            raise ValueError(f"has `{name}` twice; name its fields apart")
    return places


def sniff(data: bytes) -> str:
    """Return the delimiter of a file, from its first bytes.

    It is a comma, unless the header has no comma, or the next line has another number of commas,
    and another delimiter fits both lines.
    """
    lines = [_QUOTED.sub(b"", line) for line in data.split(b"\n")[:2]]
    counts = {other: [line.count(other.encode()) for line in lines] for other in _DELIMITERS}
    # The second line may be incomplete: a line that is too short decides nothing.
    whole = len(lines) == 2 and lines[1] and data.count(b"\n") > 1
    found = [other for other in _DELIMITERS if counts[other][0]]
    if whole:
        fits = [other for other in found if counts[other][0] == counts[other][1]]
        found = fits or found
    if "," in found or not found:
        return ","
    return max(found, key=lambda other: counts[other][0])
