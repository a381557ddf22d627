"""Plain iterables as sources of records, so that `into` takes them as well."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from velo import _core
from velo._api.source import live, plain
from velo.connect.model import Batch, Partition, Position, Record

__all__ = ["PlainSource", "plain_source"]

_MANY = 256


class PlainSource:
    """The events of any iterable, numbered from 0, as the records of one partition."""

    name = "iterable"

    def __init__(self, events: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._events = events
        self._first = 0
        self._stopped = False
        self._room = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give what is there, and wait when nothing is."""
        events: Any = self._events
        if self._first:
            events = itertools.islice(events, self._first, None)
        if not isinstance(events, AsyncIterable):
            events = plain(events, _MANY, asyncio.get_running_loop())
        if not isinstance(events, AsyncIterable | _core.ReadAhead):
            number = self._first
            while not self._stopped:
                batch = [
                    Record(event, position=number + index)
                    for index, event in zip(range(_MANY), events, strict=False)
                ]
                if not batch:
                    return
                number += len(batch)
                yield batch
            return
        source = live(events, _MANY, self._room.set)
        try:
            number = self._first
            while not self._stopped:
                self._room.clear()
                batch = []
                for event in source.events:
                    batch.append(Record(event, position=number))
                    number += 1
                    if len(batch) == _MANY:
                        break
                if batch:
                    yield batch
                elif source.exhausted:
                    return
                else:
                    await self._room.wait()
        finally:
            await source.close()

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        self._room.set()

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: a plain iterable has no place to go back to."""


class Collection(PlainSource):
    """A collection, which gives the same events again whenever it is asked."""

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Leave out the events up to the position."""
        self._first = positions.get(None, -1) + 1


def plain_source(events: Iterable[Any] | AsyncIterable[Any]) -> PlainSource:
    """Make a source of any iterable. What is its own iterator, or async, gives each event once."""
    again = isinstance(events, Iterable) and not isinstance(events, Iterator)
    return Collection(events) if again else PlainSource(events)
