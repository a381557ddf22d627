"""Several sources as one: it gives each source's records as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from velo.connect.errors import ConnectError
from velo.connect.model import Assigned, Batch, Lost, Revoked, record_of

__all__ = ["Merged"]

# The most items of one source that wait to be taken.
_AHEAD = 2


class Merged:
    """A source that reads others side by side.

    Partitions of two sources must have different names.
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self.name = ", ".join(source.name for source in sources)
        self._sources = sources
        # Which source a partition belongs to.
        self._owners: dict[Hashable, int] = {}

    async def __aiter__(self) -> AsyncIterator[Batch | Assigned | Revoked | Lost]:
        """Give items of all sources, until all have ended."""
        queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(_AHEAD * len(self._sources))
        taken = [asyncio.Event() for _ in self._sources]
        tasks = [
            asyncio.create_task(self._read(number, queue, taken[number]), name=source.name)
            for number, source in enumerate(self._sources)
        ]
        left = len(tasks)
        try:
            while left:
                number, item = await queue.get()
                if item is None:
                    left -= 1
                    await asyncio.wait([tasks[number]])
                    tasks[number].result()  # raises the exception of the source
                    continue
                self._note(number, item)
                yield item
                taken[number].set()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _read(
        self, number: int, queue: asyncio.Queue[tuple[int, Any]], taken: asyncio.Event
    ) -> None:
        items = aiter(self._sources[number])
        try:
            async for item in items:
                taken.clear()
                await queue.put((number, item))
                await taken.wait()  # a partition is released only once its records are handled
        finally:
            if (close := getattr(items, "aclose", None)) is not None:
                await close()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(asyncio.ensure_future(queue.put((number, None))))

    def _note(self, number: int, item: Any) -> None:
        if isinstance(item, Assigned | Revoked | Lost):
            partitions: Iterable[Hashable] = item.partitions
        else:
            partitions = {record_of(each).partition for each in item}
        for partition in partitions:
            if self._owners.setdefault(partition, number) != number:
                raise ConnectError(
                    f"two inputs have a partition {partition!r}: read them in two runs, or as one "
                    "input with several topics"
                )

    def _by_source(self, partitions: Iterable[Hashable]) -> dict[int, list[Hashable]]:
        found: dict[int, list[Hashable]] = {}
        for partition in partitions:
            found.setdefault(self._owners[partition], []).append(partition)
        return found

    def pause(self, partitions: Iterable[Hashable]) -> None:
        """Stop reading these partitions, if their source can do that."""
        for number, some in self._by_source(partitions).items():
            if (pause := getattr(self._sources[number], "pause", None)) is not None:
                pause(some)

    def resume(self, partitions: Iterable[Hashable]) -> None:
        """Read these partitions again."""
        for number, some in self._by_source(partitions).items():
            if (resume := getattr(self._sources[number], "resume", None)) is not None:
                resume(some)

    async def commit(self, positions: Mapping[Hashable, Any]) -> None:
        """Commit each position to its source."""
        for number, some in self._by_source(positions).items():
            await self._sources[number].commit({p: positions[p] for p in some})

    @property
    def seek(self) -> Callable[[Mapping[Hashable, Any]], None]:
        """Begin behind positions; each source takes its own. Not there where no source can."""
        able = [hasattr(source, "seek") for source in self._sources]
        if not any(able):
            raise AttributeError("none of the sources can seek")
        return self._seek if all(able) else self._refuse

    def _seek(self, positions: Mapping[Hashable, Any]) -> None:
        for source in self._sources:
            source.seek(positions)

    def _refuse(self, _positions: Mapping[Hashable, Any]) -> None:
        kinds: dict[bool, list[str]] = {True: [], False: []}
        for source in self._sources:
            kinds[hasattr(source, "seek")].append(source.name)
        raise ConnectError(
            f"one checkpoint cannot hold {', '.join(kinds[True])}, which can go back to a "
            f"position, beside {', '.join(kinds[False])}, which cannot: read them in two runs"
        )

    def remember(self, positions: Mapping[Hashable, Sequence[Any]]) -> None:
        """Have the records at these positions keep them, where their source wants to know."""
        for source in self._sources:
            if (remember := getattr(source, "remember", None)) is not None:
                remember(positions)

    @property
    def stable(self) -> bool:
        """Whether the positions of all sources are stable."""
        return all(getattr(source, "stable", False) for source in self._sources)

    @property
    def shares(self) -> bool:
        """Whether a group gives one of them some of the partitions."""
        return any(getattr(source, "shares", False) for source in self._sources)

    def share(self) -> None:
        """Refuse to have partitions move with their states."""
        raise ConnectError(
            f"partitions of {self.name} cannot move with their states together: read each input by "
            "a run of its own, or topics of one cluster as one input: kafka://HOST/ONE,OTHER"
        )

    def lag(self) -> Mapping[Hashable, int]:
        """Give the lag of all partitions that have one."""
        lags: dict[Hashable, int] = {}
        for source in self._sources:
            if (lag := getattr(source, "lag", None)) is not None:
                lags.update(lag())
        return lags

    def stop(self) -> None:
        """Read no more."""
        for source in self._sources:
            source.stop()

    async def close(self) -> None:
        """Close all."""
        for source in self._sources:
            if (close := getattr(source, "close", None)) is not None:
                await close()
