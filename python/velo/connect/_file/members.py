"""The members of a packed file that a program was killed while it wrote."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from velo.connect._file.packing import damages, unpacker
from velo.connect.errors import ConnectError

__all__ = ["cut_torn_member"]

# So many bytes are unpacked at a time: a few may become very many.
_MANY = 4096
# A sink that was killed while it made a file has left no more of its first member, which is empty.
_FIRST = 64
# In so many bytes at the end of a file, its last members are looked for first.
_TAIL = 1024 * 1024


def cut_torn_member(path: Path, raw: Any) -> None:
    """Cut off what follows the last whole member: a program was killed while it wrote that.

    Raises:
        ConnectError: When the file is damaged in another way, or no member of it is whole, so that
            more might be cut off.

    """
    status = os.fstat(raw.fileno())
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return
    with path.open("rb") as written:
        if _ends_whole(path, written, status.st_size):
            return
        end = 0
        try:
            for each in _ends(written, 0, unpacker(path)[1]):
                end = each
        except damages(path) as error:
            raise ConnectError(
                f"cannot write to `{path}`: behind byte {end:,} it is damaged ({error}), and what "
                "is added could not be read; name another file"
            ) from error
        if not end and status.st_size > _FIRST:
            raise ConnectError(
                f"cannot write to `{path}`: a program was killed while it wrote it, and what is "
                "added could not be read; name another file"
            )
    raw.truncate(end)


def _ends_whole(path: Path, written: BinaryIO, size: int) -> bool:
    """Whether members that begin in the last bytes reach the end: then not all is unpacked."""
    mark, new = unpacker(path)
    begin = max(0, size - _TAIL)
    written.seek(begin)
    tail = written.read(size - begin)
    at = tail.find(mark)
    passed: set[int] = set()  # those behind one that was unpacked were unpacked with it
    while at >= 0:
        if begin + at not in passed:
            ends: list[int] = []
            try:
                ends.extend(_ends(written, begin + at, new))
            except damages(path):
                pass  # it only looks like the begin of one, or what follows is damaged
            else:
                if ends:
                    return ends[-1] == size
            passed.update(ends)
        at = tail.find(mark, at + 1)
    return False


def _ends(written: BinaryIO, begin: int, new: Callable[[], Any]) -> Iterator[int]:
    """Give where members end, from the begin of one on. Zeros behind one are no part of it."""
    written.seek(begin)
    member, data = None, b""
    while data := data or written.read(_MANY):
        if member is None:
            data = data.lstrip(b"\0")
            if not data:
                continue
            member = new()
        member.decompress(data)
        data = b""
        if member.eof:
            data, member = member.unused_data, None
            yield written.tell() - len(data)
