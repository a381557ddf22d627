"""Packed files: which they are, and how they are read and written.

A packed file is a row of members (streams of bz2 and xz, frames of zstd), each of which can be
unpacked on its own. A sink ends one at each flush: what was flushed stays readable whatever becomes
of what follows, and what a killed program has left behind the last whole member is cut off.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from velo._packing import zstd_module
from velo.connect.errors import missing

__all__ = ["Packed", "damages", "packer", "unpacker"]


class Packed:
    """What packs what is written to it, and the file below."""

    def __init__(self, packs: Any, raw: Any) -> None:
        self._packs = packs
        self._raw = raw
        self._member: Any = None
        if not os.fstat(raw.fileno()).st_size:
            # An empty file is no packed one: it has a member without results. That ends at once, so
            # that each file of a sink has a whole member.
            self.write(b"")
            self.flush()

    def write(self, data: bytes) -> None:
        if self._member is None:
            self._member = self._packs(self._raw, "wb")
        self._member.write(data)

    def flush(self) -> None:
        """End the member: half of one may be no more than its beginning to who reads it."""
        if self._member is not None:
            member, self._member = self._member, None
            member.close()
        self._raw.flush()

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def close(self) -> None:
        with contextlib.closing(self._raw):
            self.flush()


def _zstd(path: Path) -> Any:
    zstd = zstd_module()
    if zstd is None:
        raise missing(f"`{path}`", "zstd")
    return zstd


def packer(path: Path) -> Any:
    """Give what opens a packed file to read or write; None for a plain one."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return _zstd(path).ZstdFile
    packers: dict[str, Any] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
    found = packers.get(suffix)
    return _gzip if found is gzip.GzipFile else found


def unpacker(path: Path) -> tuple[bytes, Callable[[], Any]]:
    """Give what the members of a packed file begin with, and what makes an unpacker of one."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return b"\x28\xb5\x2f\xfd", _zstd(path).ZstdDecompressor
    found: dict[str, tuple[bytes, Callable[[], Any]]] = {
        ".gz": (b"\x1f\x8b\x08", lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
        ".bz2": (b"BZh", bz2.BZ2Decompressor),
        ".xz": (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    }
    return found[suffix]


def damages(path: Path) -> tuple[type[Exception], ...]:
    """Give the errors by which the reader of a file tells that it is damaged."""
    found = (EOFError, zlib.error, lzma.LZMAError, OSError)
    return (*found, _zstd(path).ZstdError) if path.suffix.lower() == ".zst" else found


def _gzip(file: Any, mode: str) -> Any:
    if isinstance(file, Path):
        return gzip.open(file, mode)
    return gzip.GzipFile("", mode, 6, file)
