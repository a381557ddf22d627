"""What interrupts the waits of a thread."""

from __future__ import annotations

import contextlib
import os

__all__ = ["Wake"]


class Wake:
    """A descriptor that is readable from when it is rung until it is hushed. It is never closed.

    An event counter where the system has one, else a pipe.
    """

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._read, self._write = os.pipe()
            for fd in (self._read, self._write):
                os.set_blocking(fd, False)

    def fileno(self) -> int:
        """Return what to wait for."""
        return self._read

    def ring(self) -> None:
        """Make it readable. It may be already."""
        with contextlib.suppress(BlockingIOError):  # it is full, and readable
            os.write(self._write, (1).to_bytes(8, "little"))

    def hush(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 512)) == 512:
                pass
