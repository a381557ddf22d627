"""Follows a file that grows, by its name, as `tail -F` does."""

from __future__ import annotations

import io
import os

from velo.cli.inputs import CHUNK

__all__ = ["Followed"]


class Followed:
    """A file that others append to, from its beginning on.

    It need not be there yet. When another file takes its name (rotation), the rest of the old one
    is read first, then the new one. When it becomes shorter than what was read (truncation), it is
    read anew; a file that was cut and has already grown beyond that point again cannot be told
    from one that was not.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._position = 0

    def read(self) -> bytes | None:
        """Return what is new, empty if nothing is; None where another file begins.

        Raises:
            OSError: When the file cannot be read.

        """
        if self._file is None:
            try:
                self._file = io.FileIO(self._path, "rb")
            except FileNotFoundError:
                return b""
        if data := self._more():
            return data
        mine = os.fstat(self._file.fileno())
        if mine.st_size < self._position:
            self._file.seek(0)
            self._position = 0
            return None
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return b""  # moved away; who writes to it may go on doing so
        # Until something is in the new file, its writer may not have let go of the old one.
        if (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino) or named.st_size == 0:
            return b""
        if data := self._more():
            return data  # written between the two looks
        self.close()
        return None

    def _more(self) -> bytes:
        assert self._file is not None
        data = self._file.read(CHUNK) or b""
        self._position += len(data)
        return data

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._position = 0
