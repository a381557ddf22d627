"""Packed files: which they are, and how they are read and written."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any

from velo._packing import zstd_module
from velo.connect.errors import missing

__all__ = ["Packed", "damages", "packer"]


class Packed:
    """What packs what is written to it, and the file below."""

    def __init__(self, packed: Any, raw: Any) -> None:
        self._packed = packed
        self._raw = raw

    def write(self, data: bytes) -> None:
        self._packed.write(data)

    def flush(self) -> None:
        self._packed.flush()
        self._raw.flush()

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def close(self) -> None:
        with contextlib.closing(self._raw):
            self._packed.close()


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


def damages(path: Path) -> tuple[type[Exception], ...]:
    """Give the errors by which the reader of a file tells that it is damaged."""
    found = (EOFError, zlib.error, lzma.LZMAError, OSError)
    return (*found, _zstd(path).ZstdError) if path.suffix.lower() == ".zst" else found


def _gzip(file: Any, mode: str) -> Any:
    if isinstance(file, Path):
        return gzip.open(file, mode)
    return gzip.GzipFile("", mode, 6, file)
