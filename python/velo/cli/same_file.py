"""Whether an output is an input: writing it would destroy what is to be read."""

from __future__ import annotations

import os
import stat

__all__ = ["is_same"]


def is_same(output: str, input: str) -> bool:
    """Return whether an output and an input are one file that is there.

    `-` is a standard stream, which the shell may have made of a file.
    """
    written, read = _status(output, 1), _status(input, 0)
    return written is not None and read is not None and os.path.samestat(written, read)


def _status(path: str, standard: int) -> os.stat_result | None:
    try:
        if path != "-":
            return os.stat(path)
        status = os.fstat(standard)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None  # one terminal is read and written
