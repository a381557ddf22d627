"""The events of a function that is called directly, or of a later part of a chain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from typing import Any, TypeVar, cast

from velo._core import Record
from velo.events import TICK, Events, Tick

__all__ = ["pulled"]

In = TypeVar("In")


def pulled(source: Iterable[In] | AsyncIterable[In]) -> Events[In]:
    """Return events for a function that is called directly, or for a later part of a chain."""
    if isinstance(source, AsyncIterator) and hasattr(source, "ticks"):
        return cast("Events[In]", source)  # the events of another stream function
    return _Pulled(source)


class _Pulled(AsyncIterator[In]):
    """Events from anything that can be iterated over, one by one."""

    def __init__(self, source: Iterable[In] | AsyncIterable[In]) -> None:
        self.record: Record | None = None
        self._source = aiter(source) if isinstance(source, AsyncIterable) else _give(source, self)
        # A request for the next event, after a wait that ended before it.
        self._asked: asyncio.Task[In] | None = None

    def __aiter__(self) -> AsyncIterator[In]:
        # The source itself is faster, as long as no request is pending.
        return self if self._asked else self._source

    async def __anext__(self) -> In:
        if self._asked is None:
            return await anext(self._source)
        await asyncio.wait([self._asked])
        asked, self._asked = self._asked, None
        return asked.result()

    def ticks(self, seconds: float) -> AsyncIterator[In | Tick]:
        if not seconds > 0:
            raise ValueError(f"`seconds` must be more than 0, not {seconds!r}")
        return self._ticks(seconds)

    async def _ticks(self, seconds: float) -> AsyncGenerator[In | Tick, None]:
        while True:
            if self._asked is None:
                self._asked = asyncio.create_task(_next(self._source))
            try:
                done, _ = await asyncio.wait([self._asked], timeout=seconds)
            except asyncio.CancelledError:
                await self._give_up()
                raise
            if not done:
                yield TICK
                continue
            asked, self._asked = self._asked, None
            try:
                event = asked.result()
            except StopAsyncIteration:
                return
            yield event

    async def _give_up(self) -> None:
        """Pass a cancellation on to the source."""
        if self._asked is not None:
            self._asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._asked])


async def _give(source: Iterable[Any], pulled: _Pulled[In]) -> AsyncGenerator[In, None]:
    for event in source:
        if type(event) is Record:
            pulled.record = event
            yield event.value
        else:
            yield event


async def _next(source: AsyncIterator[In]) -> In:
    return await anext(source)
