"""The files that `velo run` reads, as a source of records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from velo.cli.parsing import BadLine
from velo.cli.reading import Reader
from velo.connect.model import Bad, Batch, Record

__all__ = ["ReaderSource"]


class ReaderSource:
    """Events of files and pipes, numbered from 0, as records of one partition.

    Args:
        make: Makes the reader, in the event loop.

    """

    name = "files"

    def __init__(self, make: Callable[[], Reader]) -> None:
        self._make = make
        self._reader: Reader | None = None

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give the reader's events as records."""
        self._reader = reader = self._make()
        number = 0
        async with contextlib.aclosing(reader.bursts()) as bursts:
            async for burst in bursts:
                batch: list[Record | Bad] = []
                bad = list(burst.bad)
                for index, event in enumerate(burst.events):
                    while bad and bad[0].after <= index:
                        batch.append(_bad(bad.pop(0), number))
                        number += 1
                    batch.append(Record(event, None, burst.where, "files", number))
                    number += 1
                for line in bad:
                    batch.append(_bad(line, number))
                    number += 1
                yield batch

    def stop(self) -> None:
        """Read no more."""
        if self._reader is not None:
            self._reader.stop()

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Keep nothing: files have no place for positions."""


def _bad(line: BadLine, number: int) -> Bad:
    record = Record(None, None, line.where, "files", number)
    return Bad(record, ValueError(str(line)))
