"""The files that `velo run` reads, as a source of records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from velo.cli.keys import Keys
from velo.cli.parsing import BadLine, Burst
from velo.cli.reading import Reader
from velo.connect.errors import PositionLost
from velo.connect.model import Bad, Batch, Record, record_of

__all__ = ["LineError", "ReaderSource"]


class LineError(ValueError):
    """A line is no event. The message names the line."""


class ReaderSource:
    """Events of files and pipes as records: each file is a partition, numbered from 0.

    Args:
        make: Makes the reader, in the event loop.
        keys: Gives the key of each event; None: there are none.

    """

    name = "files"

    def __init__(self, make: Callable[[], Reader], keys: Keys | None = None) -> None:
        self._make = make
        self._keys = keys
        self._reader: Reader | None = None
        self._is_stopped = False
        # By file: how many events and bad lines an earlier run has handled, and how many were read.
        self._handled: dict[str, int] = {}
        self._read: dict[str, int] = {}

    def seek(self, positions: Mapping[Any, Any]) -> None:
        """Begin behind these positions: events up to them are read, and left out."""
        self._handled = {path: position + 1 for path, position in positions.items()}

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give the reader's events as records."""
        self._reader = reader = self._make()
        async with contextlib.aclosing(reader.bursts()) as bursts:
            async for burst in bursts:
                yield self._batch(burst)
        if not self._is_stopped:
            self._check_read()

    def _batch(self, burst: Burst) -> list[Record | Bad]:
        path = burst.path
        number = self._read.get(path, 0)
        batch: list[Record | Bad] = []
        bad = list(burst.bad)
        for index, event in enumerate(burst.events):
            while bad and bad[0].after <= index:
                batch.append(_bad(bad.pop(0), path, number + len(batch)))
            batch.append(Record(event, None, burst.where, path, number + len(batch)))
        for line in bad:
            batch.append(_bad(line, path, number + len(batch)))
        self._read[path] = number + len(batch)
        first = max(0, self._handled.get(path, 0) - number)
        if self._keys is not None:
            for item in batch[:first]:
                self._keys.written.pop(id(record_of(item).value), None)
        return batch[first:]

    def _check_read(self) -> None:
        """Check that each file has the events that were handled of it."""
        for path, read in self._read.items():
            if read < (handled := self._handled.get(path, 0)):
                raise PositionLost(
                    f"`{path}` has {read:,} events, and {handled:,} of it were handled before: it "
                    "is another file, or was cut; restore it, or name another checkpoint"
                )

    def stop(self) -> None:
        """Read no more."""
        self._is_stopped = True
        if self._reader is not None:
            self._reader.stop()

    async def commit(self, positions: Mapping[Any, Any]) -> None:
        """Keep nothing: files have no place for positions."""


def _bad(line: BadLine, path: str, number: int) -> Bad:
    record = Record(line.text, None, line.where, path, number)
    return Bad(record, LineError(str(line)))
