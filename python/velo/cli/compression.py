"""Compressed files in formats that Python's own library lacks."""

from __future__ import annotations

from typing import Any

import click

from velo._packing import zstd_module

__all__ = ["open_zstd", "zstd_of"]


def zstd_of(path: str) -> Any:
    """Return the module that compresses and decompresses `.zst` files.

    Raises:
        click.UsageError: When no such module is installed.

    """
    zstd = zstd_module()
    if zstd is None:
        raise click.UsageError(f"`{path}` needs zstd: pip install 'velo-stream[zstd]'")
    return zstd


class _Zstd:
    """A `.zst` file for reading. Damage raises an `OSError`, as in other compressed files."""

    def __init__(self, zstd: Any, file: Any) -> None:
        self._file = zstd.ZstdFile(file)
        self._error = zstd.ZstdError

    def read1(self, size: int) -> bytes:
        try:
            data: bytes = self._file.read1(size)
        except self._error as error:
            raise OSError(str(error)) from None
        return data


def open_zstd(zstd: Any, file: Any) -> Any:
    """Open a compressed file as a file of its uncompressed bytes."""
    return _Zstd(zstd, file)
