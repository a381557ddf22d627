"""The changes of a tick as bytes: packed, and without pickles."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from velo import _core
from velo._checkpoint.store import Row, Tick, Values

__all__ = ["Changes", "packed", "unpacked"]

# Fast: a tick waits for it.
_LEVEL = 1


class Changes(NamedTuple):
    """What a tick changes.

    Attributes:
        tick: The epoch.
        rows: Keys that have changed.
        gone: Keys that have ended.

    """

    tick: Tick
    rows: Sequence[Values]
    gone: list[bytes]


def packed(changes: Changes) -> bytes:
    """Return the bytes of changes."""
    tick, rows, gone = changes
    columns = [list(column) for column in zip(*rows, strict=True)]
    plain = (tick.epoch, tick.made, tick.undoable, tick.cut, columns, list(gone))
    return zlib.compress(_core.dumps(plain), _LEVEL)


def unpacked(data: bytes) -> Changes:
    """Return the changes that these bytes are.

    Raises:
        ValueError: When they are none.

    """
    try:
        plain = _core.loads(zlib.decompress(data), False)
        epoch, made, undoable, cut, columns, gone = plain
        rows = [Row(*row) for row in zip(*columns, strict=True)]
    except (zlib.error, TypeError, ValueError) as error:
        raise ValueError(f"it holds no changes: {error}") from None
    return Changes(Tick(epoch, made, undoable, cut), rows, gone)
