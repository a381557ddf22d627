"""The events of a stream function, and ticks while none arrive.

```python
from velo import stream_fn
from velo.events import TICK, Events


@stream_fn
async def sessions(events: Events[str]):
    # Clicks, in sessions that end after half a minute without one.
    session: list[str] = []
    async for event in events.ticks(30.0):
        if event is not TICK:
            session.append(event)
        elif session:
            yield session
            session = []
    if session:
        yield session


print(sessions.run_sync(["home", "shop"]))  # [['home', 'shop']]
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, final

if TYPE_CHECKING:
    from velo._core import Record

__all__ = ["TICK", "Events", "Tick"]

In_co = TypeVar("In_co", covariant=True)
In = TypeVar("In")


@final
class Tick:
    """The type of `TICK`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "TICK"

    def __reduce__(self) -> str:
        return "TICK"  # the only one, in every process


TICK: Final = Tick()
"""Yielded by `events.ticks(seconds)` after that long without an event. Compare with `is`."""


class Events(Protocol[In_co]):
    """The events of one stream, in order: the argument of a stream function.

    You can cancel a wait for the next event: `asyncio.timeout` around `anext(events)` loses none.
    (In a composed function, this holds for the first part. A later part has the one before it as
    its source, and a cancelled wait cancels that, too; `ticks` does not.)
    """

    def __aiter__(self) -> AsyncIterator[In_co]: ...
    async def __anext__(self) -> In_co: ...

    @property
    def record(self) -> Record | None:
        """The record of the event that was received last, for a source of `velo.connect`.

        It tells the event's key, topic, partition, position, timestamp and headers. None before the
        first event, and for events that come from elsewhere.
        """
        ...

    def ticks(self, seconds: float) -> AsyncIterator[In_co | Tick]:
        """Iterate over the events, and over a `TICK` whenever `seconds` pass without one.

        The time counts from the moment at which the function begins to wait, anew for each event
        and each tick. Ticks end with the input. They do not reset the `timeout` of the stream. You
        can leave the iteration without losing an event.

        Raises:
            ValueError: When `seconds` is not more than 0.

        """
        ...
