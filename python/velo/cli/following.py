"""Follows a file that grows, by its name, as `tail -F` does."""

from __future__ import annotations

import io
import os

from velo.cli.inputs import CHUNK

__all__ = ["Followed"]


class Followed:
    """A file to which other programs append, read from its beginning.

    The file need not exist yet. When another file takes its name (rotation), the rest of the old
    file is read first, then the new file. When the file becomes shorter than the part that was read
    (truncation), it is read from its beginning. A file that was truncated and has already grown
    beyond that part again cannot be told from a file that was not truncated.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._position = 0

    def read(self) -> bytes | None:
        """Return the new bytes, which may be none; None where another file begins.

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
            return b""  # moved away; its writer may still write to it
        # While the new file is empty, its writer may still have the old one open.
        if (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino) or named.st_size == 0:
            return b""
        if data := self._more():
            return data  # written between the read and the check
        self.close()
        return None

    def _more(self) -> bytes:
        assert self._file is not None
        data = self._file.read(CHUNK) or b""
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._position = 0
