"""Messages on a socket between a worker and the keeper of its supervisor's checkpoint.

Each is a plain value in the encoding of events, after its length in four bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from velo import _core

__all__ = ["pack", "unpack_all"]

_LENGTH = 4


def pack(message: Any) -> bytes:
    """Return a message as it travels."""
    packed = _core.dumps(message)
    return len(packed).to_bytes(_LENGTH) + packed


def unpack_all(inbox: bytearray) -> Iterator[Any]:
    """Take the messages that are there as a whole out of an inbox.

    Raises:
        ValueError: When one is none.

    """
    while len(inbox) >= _LENGTH:
        end = _LENGTH + int.from_bytes(inbox[:_LENGTH])
        if len(inbox) < end:
            return
        message = bytes(inbox[_LENGTH:end])
        del inbox[:end]
        yield _core.loads(message, False)
