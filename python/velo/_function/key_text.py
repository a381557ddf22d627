"""Keys as messages, logs and viewers show them."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["shown"]

# How many characters of a key are shown.
_LONGEST = 100


def shown(key: Hashable) -> str:
    """Return a key as messages show it: on one line, and cut where it is long."""
    text = repr(key)
    if not text.isprintable():
        text = ascii(text)[1:-1]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
