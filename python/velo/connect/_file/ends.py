"""The end of a file that is written: a torn line, and marks.

A mark is the length of the file, with a checksum of what lies before it, so that another file is
found out, and the same one in another folder is not.
"""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from velo._files import open_own
from velo.connect.errors import PositionLost

__all__ = ["Mark", "cut", "cut_torn_line", "mark_of"]

Mark = tuple[int, int]

# How many bytes before a mark its checksum covers.
_CHECKED = 4096


def mark_of(path: Path, size: int) -> Mark:
    """Give the mark of a file of this size in bytes."""
    with path.open("rb") as written:
        return size, _checksum(written, size)


def cut(path: Path, mark: Mark) -> None:
    """Cut off what lies behind a mark.

    Raises:
        PositionLost: When the file is shorter than that, or another one.

    """
    size, checksum = mark
    try:
        out = open(path, "r+b", opener=open_own)  # noqa: SIM115
    except FileNotFoundError:
        if size:
            raise _lost(path, size, "is not there") from None
        return
    with out:
        found = out.seek(0, os.SEEK_END)
        if found < size:
            raise _lost(path, size, f"has {found:,} bytes")
        if _checksum(out, size) != checksum:
            raise _lost(path, size, "has other bytes before that")
        out.truncate(size)
        os.fsync(out.fileno())


def _lost(path: Path, size: int, why: str) -> PositionLost:
    return PositionLost(
        f"the checkpoint has written `{path}` up to byte {size:,}, and the file {why}: it was "
        "changed, or is another one. Put it back, or begin without the checkpoint, and with "
        "another file"
    )


def _checksum(file: BinaryIO, end: int) -> int:
    """Give a checksum of the last bytes before a place."""
    begin = max(0, end - _CHECKED)
    file.seek(begin)
    return zlib.crc32(file.read(end - begin))


def cut_torn_line(out: Any) -> None:
    """End the last line, if a program was killed while it wrote that."""
    if not stat.S_ISREG(os.fstat(out.fileno()).st_mode) or not (end := out.seek(0, os.SEEK_END)):
        return
    with open(out.name, "rb") as written:
        at = end
        while at > 0:
            begin = max(0, at - 64 * 1024)
            written.seek(begin)
            if (found := written.read(at - begin).rfind(b"\n")) >= 0:
                at = begin + found + 1
                break
            at = begin
    if at < end:
        out.truncate(at)
        out.seek(0, os.SEEK_END)
