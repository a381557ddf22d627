r"""Turns the bytes of a file in any encoding into UTF-8 whose lines end in \n, for the parsers.

A BOM names the Unicode encoding of a file; `--encoding` names any other encoding.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

import click

__all__ = ["Decoder", "check_encoding"]

_UTF8 = codecs.BOM_UTF8
# The longer BOMs come first: the BOM of UTF-32 begins with the BOM of UTF-16.
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENDS = re.compile(rb"[\r\n]")
_ENDS_OR_QUOTES = re.compile(rb'["\r\n]')


def _as_bad(error: UnicodeError) -> tuple[str, int]:
    """Replace bytes that cannot be decoded by an invalid byte, so that their line is reported."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error("velo-bad", _as_bad)


def check_encoding(name: str) -> str:
    """Return the name of an encoding.

    Raises:
        click.UsageError: When Python does not know the encoding, or it does not encode text.

    """
    try:
        b"x".decode(name, "replace")
        return codecs.lookup(name).name
    except (LookupError, ValueError, UnicodeError):
        raise click.UsageError(
            f"`--encoding {name}`: there is no such encoding of text; latin-1, cp1252 and utf-16 "
            "are some"
        ) from None


class Decoder:
    """Decodes one file as its bytes come.

    Args:
        encoding: The encoding of the file; None: the one that a BOM names, or UTF-8.
        quotes: Whether a line end within quotes is part of a value, as in CSV.

    Attributes:
        encoding: The encoding in use, once the first bytes have shown it.

    """

    def __init__(self, encoding: str | None = None, *, quotes: bool = False) -> None:
        self.encoding = encoding or "utf-8"
        self._decode: Any = None
        self._head: bytes | None = b""
        self._pattern = _ENDS_OR_QUOTES if quotes else _ENDS
        # The line end of the file; None before the first one.
        self._end: bytes | None = None
        self._quoted = False
        self._held = b""
        self._returned = False
        if encoding is not None and codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
            self._choose(encoding)

    def _choose(self, encoding: str) -> None:
        self.encoding = encoding
        self._decode = codecs.getincrementaldecoder(encoding)(errors="velo-bad")

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """Take the next bytes, and return those that are ready for the parser."""
        if self._head is not None:
            data = self._begin(data, last)
        if self._decode is not None:
            data = self._decode.decode(data, last).encode("utf-8", "surrogateescape")
        return data if self._end == b"\n" else self._ends(data, last)

    def _begin(self, data: bytes, last: bool) -> bytes:
        """Look for a BOM, which may come in pieces."""
        data = (self._head or b"") + data
        if self._decode is None:
            waits = any(bom.startswith(data) for bom, _ in _BOMS) or _UTF8.startswith(data)
            if waits and len(data) < 4 and data != _UTF8 and not last:
                self._head = data
                return b""
            if data.startswith(_UTF8):
                data = data[len(_UTF8) :]
            elif found := [name for bom, name in _BOMS if data.startswith(bom)]:
                self._choose(found[0])
        self._head = None
        return data

    def _ends(self, data: bytes, last: bool) -> bytes:
        r"""Find the line end of the file, and replace it by \n if it is \r.

        What comes before the first line end stays as it is, also a \r within quotes: the parser may
        have it already.
        """
        data, self._held, before = self._held + data, b"", b""
        if self._end is None:
            for found in self._pattern.finditer(data):
                if found[0] == b'"':
                    self._quoted = not self._quoted
                elif not self._quoted:
                    at = found.start()
                    if found[0] == b"\n" or data[at + 1 : at + 2] == b"\n":
                        self._end = b"\n"
                        return data
                    if at + 1 == len(data) and not last:
                        # The next byte decides; the parser needs the bytes before it now.
                        self._held = b"\r"
                        return data[:at]
                    self._end = b"\r"
                    before, data = data[:at], data[at:]
                    break
            else:
                return data
        if data:
            if self._returned:
                data = data.removeprefix(b"\n")  # the line has ended with the bytes before
            self._returned = data.endswith(b"\r")
        return before + data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
