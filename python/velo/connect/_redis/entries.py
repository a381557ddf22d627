"""Entries of Redis streams: their ids, where to begin and to end among them, and their layout."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from velo.connect.errors import ConnectError, PositionLost
from velo.connect.formats import key_bytes
from velo.connect.model import Bad, Headers, Record, To

__all__ = ["Bound", "Entry", "Layout", "after", "begin_id", "order", "start_of", "text"]

_ID = re.compile(r"\d+(-\d+)?")
_WORDS = ("earliest", "latest", "committed")


class Entry(NamedTuple):
    """An entry as the server gives it; `fields` is None where it was deleted."""

    stream: str
    id: str
    fields: list[bytes] | None


def text(data: bytes | str) -> str:
    """Give a name or an id as text."""
    return data if isinstance(data, str) else data.decode(errors="surrogateescape")


def order(entry_id: str) -> tuple[int, int]:
    """Give the place of an id among others."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def after(entry_id: str) -> str:
    """Give the first id behind this one."""
    milliseconds, number = order(entry_id)
    return f"{milliseconds}-{number + 1}"


def start_of(start: Any, stream: str) -> Any:
    """Give where one of the streams begins."""
    return start.get(stream, "earliest") if isinstance(start, Mapping) else start


def begin_id(start: Any, stream: str) -> str:
    """Give the id behind which a stream is read: `$` for its end.

    Raises:
        ValueError: When `start` is none of the kinds that exist.

    """
    start = start_of(start, stream)
    if start in ("earliest", "committed"):
        return "0-0"
    if start == "latest":
        return "$"
    if isinstance(start, int | float) and not isinstance(start, bool):
        milliseconds = int(start * 1000)
        return f"{milliseconds - 1}-{2**64 - 1}" if milliseconds > 0 else "0-0"
    if isinstance(start, str) and _ID.fullmatch(start):
        return start
    raise ValueError(
        f"start={start!r}: one of {', '.join(map(repr, _WORDS))}, seconds since the epoch, or the "
        "id of the last entry that was handled"
    )


class Bound:
    """Where reading ends: nowhere, at the last entry of each stream at the start, or at a time."""

    def __init__(self, until: Any) -> None:
        if until not in (None, "end") and (
            isinstance(until, bool) or not isinstance(until, int | float)
        ):
            raise ValueError(f'until={until!r}: None, "end" or seconds since the epoch')
        self.exists = until is not None
        self._until = until
        self._last: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()

    def begin(self, stream: str, last_id: str) -> None:
        """Note the last id of a stream at the start."""
        if self._until == "end":
            self._last[stream] = order(last_id)
        elif self._until is not None:
            self._last[stream] = (math.ceil(self._until * 1000) - 1, 2**64)
        if self._until == "end" and last_id == "0-0":
            self._done.add(stream)

    def holds(self, entry: Entry) -> bool:
        """Tell whether an entry is to be given; notes when it is the last one."""
        last = self._last.get(entry.stream)
        if last is None:
            return True
        place = order(entry.id)
        if place >= last:
            self._done.add(entry.stream)
        return place <= last

    def caught_up(self, streams: Iterable[str]) -> None:
        """Note that nothing more is there at this moment."""
        if self._until == "end" or (self._until is not None and time.time() > self._until):
            self._done.update(streams)

    def left(self, streams: Iterable[str]) -> list[str]:
        """Give the streams that are not read to their end."""
        return [stream for stream in streams if stream not in self._done]


def _pairs(fields: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(fields[::2], fields[1::2], strict=True))


class Layout:
    """How an event lies in the fields of an entry.

    Attributes:
        field: The field of the value; None where all fields together are the event.

    """

    def __init__(
        self,
        field: str | None,
        key_field: str,
        decode: Callable[[bytes], Any],
        decode_key: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
    ) -> None:
        self.field = field
        self._name = None if field is None else field.encode()
        self._key = key_field.encode()
        self._decode = decode
        self._decode_key = decode_key
        self._encode = encode

    def record(self, entry: Entry) -> Record | Bad:
        """Make a record of an entry."""
        stream, entry_id, fields = entry
        origin = (stream, stream, entry_id, int(entry_id.partition("-")[0]) / 1000)
        if fields is None:
            gone = PositionLost(
                f"the entry `{entry.id}` of the stream `{entry.stream}` was delivered and not "
                "acknowledged, and was deleted since"
            )
            return Bad(Record(b"", None, *origin), gone)
        data: bytes | None = None
        key: Any = None
        headers: Headers = ()
        pairs = iter(fields)
        for name, value in zip(pairs, pairs, strict=True):
            if name == self._name:
                data = value
            elif name == self._key:
                key = value
            elif name.startswith(b"h:"):
                headers = (*headers, (text(name[2:]), value))
        try:
            event = self._event(fields) if data is None else self._decode(data)
            if key is not None:
                key = self._decode_key(key)
        except ConnectError:
            raise  # a schema registry that is away is not the fault of the record
        except Exception as error:
            if data is None:
                data = b"\n".join(map(b"=".join, _pairs(fields)))
            return Bad(Record(data, key, *origin, headers), error)
        return Record(event, key, *origin, headers)

    def _event(self, fields: list[bytes]) -> dict[str, str]:
        """Make an event of all fields."""
        pairs = _pairs(fields)
        if self._name is None:
            return {name.decode(): value.decode() for name, value in pairs if name[:2] != b"h:"}
        names = ", ".join(f"`{text(name)}`" for name, _ in pairs)
        raise LookupError(
            f"the entry has no field `{self.field}`, but {names}: `field=` names the field of the "
            "value, and with `field=None` all fields are the event"
        )

    def fields(self, result: To) -> list[Any]:
        """Give the fields of a result, as XADD takes them.

        Raises:
            TypeError: When the result has no such form.
            ValueError: When text in it is no UTF-8.

        """
        if self.field is not None:
            fields: list[Any] = [self._name, self._encode(result.value)]
            key = key_bytes(result.key)
            if key is not None:
                fields += [self._key, key]
        else:
            if not isinstance(result.value, Mapping) or not result.value:
                kind = type(result.value).__name__
                raise TypeError(f"with field=None a result is a dict of fields, not {kind}")
            fields = []
            for name, value in result.value.items():
                plain = isinstance(value, str | bytes | float | int) and not isinstance(value, bool)
                if isinstance(value, str):
                    value = value.encode()
                fields += [str(name).encode(), value if plain else self._encode(value)]
        for name, value in result.headers:
            fields += [f"h:{name}".encode(), value]
        return fields
