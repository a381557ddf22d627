"""What is kept of a record that has failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from velo.connect.model import To

if TYPE_CHECKING:
    from velo.connect.model import Record

__all__ = ["letter"]

# Values within values are written out down to this depth, and shown as text below it.
_DEEPEST = 32


def letter(
    name: str, key: Any, error: Exception, record: Record | None, more: Mapping[str, Any]
) -> To:
    """Give what is kept of a failed record: enough to look at it, and to feed it again.

    Every value has a form in JSON, so that no sink has a reason to refuse the letter: one that it
    refuses would end the run.

    Args:
        name: The function.
        key: The key of the record.
        error: Why the record has failed.
        record: The record; None when the function has failed without one.
        more: `undecoded` where the value is what came, and no event; the `result` that was refused.

    """
    kept: dict[str, Any] = {"function": name, "error": _described(error), "key": _plain(key)}
    kept.update((entry, _plain(value)) for entry, value in more.items())
    if record is not None:
        kept.update(
            value=_plain(record.value),
            topic=_plain(record.topic),
            partition=_plain(record.partition),
            position=_plain(record.position),
            timestamp=record.timestamp,
            record_key=_plain(record.key),
            headers=[[_plain(header), _plain(value)] for header, value in record.headers],
        )
        if record.value is None and kept.get("undecoded"):
            del kept["value"]  # the source has not kept what came
    return To(kept)


def _described(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be shown"
    return _text(f"{type(error).__name__}: {text}")


def _plain(value: Any, depth: int = 0) -> Any:
    """Give a value that JSON has; bytes as text where they are text, else in base64."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError:
            import base64

            return {"base64": base64.b64encode(data).decode()}
    if depth < _DEEPEST:
        if isinstance(value, dict):
            return {_name(name): _plain(inner, depth + 1) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(inner, depth + 1) for inner in value]
    return _shown(value)


def _name(name: Any) -> str:
    """Give the name of an entry, as JSON has it."""
    return _text(name) if isinstance(name, str) else _shown(name)


def _text(text: str) -> str:
    """Give text that UTF-8 can hold: half of a surrogate pair becomes an escape."""
    return text.encode(errors="backslashreplace").decode()


def _shown(value: Any) -> str:
    try:
        return _text(repr(value))
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
