"""The file or pipe that `velo run` writes, as a sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from velo.cli.errors import Failure
from velo.cli.writing import Writer
from velo.connect.model import addressed

__all__ = ["WriterSink"]


class WriterSink:
    """Results as lines of JSON, written by a thread."""

    def __init__(self, writer: Writer, name: str) -> None:
        self.name = name
        self._writer = writer

    @property
    def failed(self) -> Failure | None:
        """The reason why the file takes no more; None before that."""
        return self._writer.failed

    def watch(self, on_failure: Callable[[], object]) -> None:
        """Have `on_failure` called when the file takes no more."""
        self._writer.on_failure = on_failure
        self._writer.watch()

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Add lines: all or none of them."""
        lines = [self._writer.line(addressed(key, result).value, key) for key, result in results]
        for (key, _), line in zip(results, lines, strict=True):
            self._writer.add(line, key)
        if self._writer.full:
            await self._writer.room()

    async def flush(self) -> None:
        """Return once all lines were given to the file."""
        await self._writer.emptied()

    async def close(self) -> None:
        """Write what is left, and close the file."""
        await self._writer.close()
