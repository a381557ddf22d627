"""Files that are packed: what Python does not have itself."""

from __future__ import annotations

from typing import Any

import click

from velo._packing import zstd_module

__all__ = ["open_zstd", "zstd_of"]


def zstd_of(path: str) -> Any:
    """Return the module that packs and unpacks `.zst`, in order to open a file.

    Raises:
        click.UsageError: When there is none.

    """
    zstd = zstd_module()
    if zstd is None:
        raise click.UsageError(f"`{path}` needs zstd: pip install 'velo-stream[zstd]'")
    return zstd


class _Zstd:
    """A `.zst` that is read; what is wrong with it is an `OSError`, as in other packed files."""

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
    """Return a file of the unpacked bytes of another."""
    return _Zstd(zstd, file)
