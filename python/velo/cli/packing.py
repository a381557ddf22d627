"""Files that are packed: what Python does not have itself."""

from __future__ import annotations

import importlib
from typing import Any

import click

__all__ = ["open_zstd", "zstd_of"]


def zstd_of(path: str) -> Any:
    """Return the module that packs and unpacks `.zst`, in order to open a file.

    Raises:
        click.UsageError: When there is none.

    """
    for name in ("compression.zstd", "backports.zstd"):  # the first one from Python 3.14 on
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise click.UsageError(f"`{path}` needs zstd: pip install 'velo-stream[zstd]'")


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
