"""A source and a sink in memory: the smallest ones there are, for tests and as a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from velo.connect.model import Batch, Partition, Position, Record

__all__ = ["MemorySink", "MemorySource"]


class MemorySource:
    """Records out of lists, one list a partition.

    Attributes:
        committed: The last committed position of each partition: an index into its list.

    """

    name = "memory"

    def __init__(self, partitions: Mapping[Partition, Iterable[Any]], batch: int = 100) -> None:
        self.committed: dict[Partition, Position] = {}
        self._partitions = {name: list(values) for name, values in partitions.items()}
        self._batch = batch
        self._paused: set[Partition] = set()
        self._changed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give each partition's records behind the committed position, in turns."""
        at = {name: self.committed.get(name, -1) + 1 for name in self._partitions}
        while left := [name for name, values in self._partitions.items() if at[name] < len(values)]:
            self._changed.clear()
            for name in left:
                if name not in self._paused:
                    begin = at[name]
                    at[name] = begin + self._batch
                    values = self._partitions[name][begin : at[name]]
                    yield [
                        Record(value, partition=name, position=begin + index)
                        for index, value in enumerate(values)
                    ]
            if self._paused.issuperset(left):
                await self._changed.wait()

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Read no more of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Read these again."""
        self._paused.difference_update(partitions)
        self._changed.set()

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Begin behind these."""
        self.committed.update(positions)

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep the positions."""
        self.committed.update(positions)


class MemorySink:
    """Results in a list.

    Attributes:
        results: The results with their keys; those behind `durable` may be lost.
        durable: How many of them were flushed.

    """

    name = "memory"

    def __init__(self) -> None:
        self.results: list[tuple[Any, Any]] = []
        self.durable = 0

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Append them."""
        self.results.extend(results)

    async def flush(self) -> None:
        """Count them as durable."""
        self.durable = len(self.results)

    async def mark(self) -> int:
        """Give the number of results."""
        return self.durable

    async def rewind(self, mark: int | None) -> None:
        """Take back those that came after a mark."""
        if mark is not None:
            del self.results[mark:]
