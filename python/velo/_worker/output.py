"""Standard output of workers: whole lines, even when several workers print at once."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys

__all__ = ["make_lock", "unmix"]

# Lines of up to this many bytes are written in one piece.
_LONGEST = 1 << 20


class _Turns(io.RawIOBase):
    """A descriptor that one process at a time writes to.

    A pipe takes at most 4 KiB in one piece. The lock is a record lock on a file that the workers
    share; the system releases it when the process that holds it dies.
    """

    def __init__(self, fd: int, lock: int) -> None:
        self._fd = fd
        self._lock = lock

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            written = 0
            while written < len(view):
                written += os.write(self._fd, view[written:])
            return written
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)


def make_lock() -> int:
    """Create the file that the workers lock, before they are forked."""
    return os.memfd_create("velo-output")


def unmix(lock: int) -> None:
    """Make this process take turns with others when it writes lines."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        with contextlib.suppress(AttributeError, OSError, ValueError):
            buffered = io.BufferedWriter(_Turns(old.fileno(), lock), _LONGEST)
            new = io.TextIOWrapper(buffered, old.encoding, old.errors, line_buffering=True)
            setattr(sys, name, new)
