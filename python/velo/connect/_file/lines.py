"""The lines of a file, with their positions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from velo.connect._file.packing import damages, packer
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost

__all__ = ["Lines"]

_MANY = 500


class Lines:
    """The lines of a file from a position on."""

    def __init__(self, path: Path, start: int, max_line: int) -> None:
        self._path = path
        self._max_line = max_line
        self._at = start
        self._rest = b""
        self._skipping = False
        unpacks = packer(path)
        try:
            self._file: BinaryIO = path.open("rb") if unpacks is None else unpacks(path, "rb")
            size = os.stat(path).st_size
        except FileNotFoundError:
            raise NoSuchTopic(f"there is no file `{path}`") from None
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConnectError(f"cannot read `{path}`: {why}") from error
        self._packed = unpacks is not None
        self._damages = damages(path)
        try:
            if start and (wrong := self._not_at(start, size)):
                raise PositionLost(
                    f"`{path}` {wrong}, and was read up to byte {start:,}: it is another file, or "
                    "was changed"
                )
        except BaseException:
            self._file.close()
            raise

    def _not_at(self, start: int, size: int) -> str | None:
        """Go to a position; say why that is none."""
        if self._packed:
            try:
                end = self._file.seek(start)
            except self._damages as error:
                raise self._breaks_off(error) from error
            return None if end == start else f"has {end:,} bytes in unpacked form"
        if start > size:
            return f"has {size:,} bytes"
        self._file.seek(start - 1)
        around = self._file.read(2)
        self._file.seek(start)
        # What was the last line, without an end, may have got that since.
        if len(around) == 2 and around[:1] != b"\n" and around[1:] not in (b"\r", b"\n"):
            return "has no end of a line there"
        return None

    def _breaks_off(self, error: Exception) -> ConnectError:
        return ConnectError(f"cannot read `{self._path}` any further: {error or 'it breaks off'}")

    def some(self, *, last: bool) -> list[tuple[bytes | ValueError, int]]:
        """Give lines with their positions, a few hundred; none at the end."""
        found: list[tuple[bytes | ValueError, int]] = []
        while len(found) < _MANY:
            try:
                data = self._file.read(64 * 1024) if self._packed else self._grown()
            except self._damages as error:
                raise self._breaks_off(error) from error
            if not data:
                if last and (self._rest or self._skipping):
                    found.append(self._line(self._rest))
                    self._rest = b""
                return found
            pieces = (self._rest + data).split(b"\n")
            self._rest = pieces.pop()
            found.extend(self._line(piece + b"\n") for piece in pieces)
            if len(self._rest) > self._max_line and not self._skipping:
                self._skipping = True
            if self._skipping:
                self._at += len(self._rest)
                self._rest = b""
        return found

    def _grown(self) -> bytes:
        held, read = self._rest, self._at + len(self._rest)
        descriptor = self._file.fileno()
        whole = os.fstat(descriptor).st_size >= read
        data = self._file.read(64 * 1024)
        # A writer that begins again may have put another line in the place of a torn one. Behind
        # the read, as that must not come in between; and not from the buffer of the file.
        if not whole or (data and held and os.pread(descriptor, len(held), self._at) != held):
            raise PositionLost(
                f"`{self._path}` was cut while it was read, at byte {read:,}: start again with "
                "`start=0`"
            )
        return data

    def _line(self, line: bytes) -> tuple[bytes | ValueError, int]:
        self._at += len(line)
        if self._skipping or len(line) > self._max_line:
            self._skipping = False
            return ValueError(f"a line has more than {self._max_line:,} bytes"), self._at
        return line.rstrip(b"\r\n"), self._at

    def close(self) -> None:
        self._file.close()
