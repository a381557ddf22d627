"""Escapes text from outside before it is printed: names, keys, values, errors, log lines.

A terminal obeys control characters. So control characters, line ends within a line, marks that
change the direction of writing, and invisible characters are shown as escapes.
"""

from __future__ import annotations

import re

import click

__all__ = ["block", "echo", "inline", "safe_json"]

_HIDDEN = (
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_IN_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_HIDDEN}]")
_IN_BLOCK = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_HIDDEN}]")
# The characters that JSON's own escapes leave.
_IN_JSON = re.compile(f"[\x7f-\x9f{_HIDDEN}]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def inline(text: object) -> str:
    """Return the text, escaped for use within a line."""
    return _IN_LINE.sub(_escape, str(text))


def block(text: object) -> str:
    """Return the text, escaped for lines of its own: line ends and tabs stay."""
    return _IN_BLOCK.sub(_escape, str(text))


def safe_json(lines: bytes) -> bytes:
    """Return equivalent JSON that is safe to print on a terminal."""
    if lines.isascii() and b"\x7f" not in lines:
        return lines
    return _IN_JSON.sub(_json_escape, lines.decode()).encode()


def echo(text: object = "", *, err: bool = False) -> None:
    """Print lines, escaped."""
    click.echo(block(text), err=err)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
