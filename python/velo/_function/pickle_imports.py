"""Finds the names that a pickle would import, without running it."""

from __future__ import annotations

import contextlib
import pickletools

__all__ = ["imports_of"]

# The most names in a message.
_MOST = 5


def imports_of(pickled: bytes) -> str:
    """Return the names that a pickle imports, as in a message; `nothing` if there are none."""
    names: dict[str, None] = {}
    texts: list[str] = []
    with contextlib.suppress(Exception):  # it may be anything
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name in ("GLOBAL", "INST"):
                names[str(argument).replace(" ", ".")] = None
            elif operation.name == "STACK_GLOBAL":
                names[".".join(texts[-2:])] = None
            elif isinstance(argument, str):
                texts.append(argument)
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(f"`{name}`" for name in shown[:_MOST]) or "nothing"
