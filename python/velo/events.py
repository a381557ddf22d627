"""What a stream function reads: its events, and ticks when none come.

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
from typing import Final, Protocol, TypeVar, final

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
        return "TICK"  # there is one, in every process


TICK: Final = Tick()
"""What `events.ticks(seconds)` yields when no event came for so long. Compare with `is`."""


class Events(Protocol[In_co]):
    """The events of one stream, in order: what a stream function gets.

    Waiting for the next one may be cancelled, so `asyncio.timeout` around `anext(events)` works: no
    event is lost. (In a composed function that holds for the first one. A later one has the one
    before it as its source, and cancels what that waits for; `ticks` does not.)
    """

    def __aiter__(self) -> AsyncIterator[In_co]: ...
    async def __anext__(self) -> In_co: ...

    def ticks(self, seconds: float) -> AsyncIterator[In_co | Tick]:
        """Iterate over the events, and over a `TICK` whenever `seconds` pass without one.

        The time counts from when the function begins to wait: it starts anew with each event and
        each tick. Ticks end with the input. They do not count as use of the stream: its `timeout`
        goes on. Leaving the iteration loses nothing.

        Raises:
            ValueError: When `seconds` is not more than 0.

        """
        ...
