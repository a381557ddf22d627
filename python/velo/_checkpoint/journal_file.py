"""One file of an event journal: a header, and frames behind it. All numbers are little-endian.

| header | bytes | | frame | bytes |
| --- | ---: | --- | --- | ---: |
| `velolog` and a zero | 8 | | marker | 4 |
| version of the format | 4 | | length of the payload | 4 |
| salt, another one for each file | 4 | | number of its first record | 8 |
| number of its first record | 8 | | how many records it has | 4 |
| the number that the file before it ends with | 8 | | CRC of the payload | 4 |
| CRC of these | 4 | | CRC of these | 4 |

The CRCs of frames begin with the salt, so that no frame of another file passes for one of this. A
frame is written once the one before it is on the disk. So a crash can tear the last frame alone,
and a frame that is not whole with a header of another one behind it has changed since.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from velo._diagnostics.failpoints import reached
from velo._files import sync

__all__ = ["FORMAT", "Damaged", "Frame", "Header", "Writer", "read", "read_header"]

FORMAT = 1
"""The version of this format."""

_MAGIC = b"velolog\0"
_HEADER = struct.Struct("<8sIIQQ")
_MARKER = b"\xf5log"
_FRAME = struct.Struct("<4sIQII")
_CRC = struct.Struct("<I")
_HEADER_SIZE, _FRAME_SIZE = _HEADER.size + _CRC.size, _FRAME.size + _CRC.size


class Damaged(Exception):
    """A file is not what was written.

    Attributes:
        at: The byte at which it ceases to be.
        by_crash: Whether a crash can have done it: nothing that was written later lies behind.
        newer: The version of its format, where that is a newer one; else 0.

    """

    def __init__(self, at: int, *, by_crash: bool = False, newer: int = 0) -> None:
        super().__init__(at)
        self.at = at
        self.by_crash = by_crash
        self.newer = newer


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        salt: A random number of 32 bits.
        first: The number of its first record.
        follows: The number behind the last record of the file before it.

    """

    salt: int
    first: int
    follows: int


class Frame(NamedTuple):
    """What was written at once.

    Attributes:
        first: The number of its first record.
        records: How many it has.
        payload: Their bytes.

    """

    first: int
    records: int
    payload: bytes

    @property
    def end(self) -> int:
        """The number behind its last record."""
        return self.first + self.records


def read_header(data: bytes) -> Header:
    """Read the header of a file.

    Raises:
        Damaged: When it has none.

    """
    head = data[:_HEADER_SIZE]
    if len(head) < _HEADER_SIZE or not head.startswith(_MAGIC):
        raise Damaged(0)
    _, version, salt, first, follows = _HEADER.unpack_from(head)
    if version > FORMAT:
        raise Damaged(0, newer=version)
    if _CRC.unpack_from(head, _HEADER.size)[0] != zlib.crc32(head[: _HEADER.size]):
        raise Damaged(0)
    return Header(salt, first, follows)


def read(data: bytes) -> Iterator[Frame]:
    """Read the frames of a file.

    Raises:
        Damaged: Behind the last one that is whole, when there is more.

    """
    header = read_header(data)
    at, number = _HEADER_SIZE, header.first
    while at < len(data):
        length, first, count, crc = _frame_header(data, at, header.salt)
        begin = at + _FRAME_SIZE
        payload = data[begin : begin + length]
        whole = length >= 0 and len(payload) == length and first == number
        if not whole or zlib.crc32(payload, header.salt) != crc:
            raise Damaged(at, by_crash=not _has_frame(data, at + 1, header.salt))
        yield Frame(first, count, payload)
        at, number = begin + length, first + count


def _frame_header(data: bytes, at: int, salt: int) -> tuple[int, int, int, int]:
    """Give length, first number, count and CRC of a frame; the length is -1 where there is none."""
    head = data[at : at + _FRAME_SIZE]
    if len(head) < _FRAME_SIZE or not head.startswith(_MARKER):
        return -1, 0, 0, 0
    if _CRC.unpack_from(head, _FRAME.size)[0] != zlib.crc32(head[: _FRAME.size], salt):
        return -1, 0, 0, 0
    _, length, first, count, crc = _FRAME.unpack_from(head)
    return length, first, count, crc


def _has_frame(data: bytes, at: int, salt: int) -> bool:
    """Whether the header of a frame lies anywhere from here on."""
    while (at := data.find(_MARKER, at)) >= 0:
        if _frame_header(data, at, salt)[0] >= 0:
            return True
        at += 1
    return False


class Writer:
    """A new file.

    Attributes:
        size: Its bytes that are on the disk for certain.

    Args:
        path: The file, which is not there yet.
        first: The number of its first record.
        follows: The number behind the last record of the file before it.

    Raises:
        OSError: When it cannot be made.

    """

    def __init__(self, path: Path, first: int, follows: int) -> None:
        self._salt = int.from_bytes(os.urandom(4), "little")
        head = _HEADER.pack(_MAGIC, FORMAT, self._salt, first, follows)
        head += _CRC.pack(zlib.crc32(head))
        self.size = len(head)
        # A file of this name has its header, whatever happens.
        new = path.with_suffix(".new")
        self._fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(self._fd, head, 0)
            os.fsync(self._fd)
            os.rename(new, path)
            sync(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, frame: Frame) -> None:
        """Write a frame; return once it is on the disk.

        Raises:
            OSError: When that fails: then `cut` has to come before the next one.

        """
        length = len(frame.payload)
        crc = zlib.crc32(frame.payload, self._salt)
        head = _FRAME.pack(_MARKER, length, frame.first, frame.records, crc)
        head += _CRC.pack(zlib.crc32(head, self._salt))
        reached("journal", 1)
        _write(self._fd, head + frame.payload, self.size)
        reached("journal", 2)
        os.fdatasync(self._fd)
        reached("journal", 3)
        self.size += len(head) + length

    @property
    def is_empty(self) -> bool:
        """Whether it has no frame."""
        return self.size == _HEADER_SIZE

    def cut(self) -> None:
        """Remove what a failed `append` has left.

        Raises:
            OSError: When that fails.

        """
        os.ftruncate(self._fd, self.size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _write(fd: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, at)
        left, at = left[written:], at + written
