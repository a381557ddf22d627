"""The file that `velo run --checkpoint` writes, as a sink that takes results back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from velo.cli.writing import line_of
from velo.connect import file
from velo.connect.model import addressed

__all__ = ["KeptFile"]


class KeptFile:
    """Results as the lines of JSON that `velo run` writes, behind those of the runs before.

    Args:
        path: The file.
        keyed: Whether each line has the key of its stream.

    """

    def __init__(self, path: str, *, keyed: bool) -> None:
        self.name = path
        self._file = file(path, encode="bytes")
        self._keyed = keyed

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Add lines."""
        lines = [
            (key, line_of(addressed(key, result).value, key, keyed=self._keyed)[:-1])
            for key, result in results
        ]
        await self._file.write(lines)

    async def flush(self) -> None:
        """Return once all lines are on the disk."""
        await self._file.flush()

    async def mark(self) -> Any:
        """Give the length of the file; None for one that cannot be cut."""
        return await self._file.mark()

    async def rewind(self, mark: Any) -> None:
        """Cut off the lines behind a mark."""
        await self._file.rewind(mark)

    async def close(self) -> None:
        """Close the file."""
        await self._file.close()
