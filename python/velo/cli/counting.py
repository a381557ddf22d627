"""A stream function that counts its streams, its keys and the events that they have handled."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Any

from velo import Stream, StreamFn, _core
from velo._api.lanes import keyed
from velo._api.opener import StreamOpener
from velo.cli.keys import Keys

__all__ = ["MOST_PENDING", "Counted", "CountingOpener"]

# The bound on events that were taken from the input and that no function has handled.
MOST_PENDING = 10_000


class Counted(StreamFn[Any, Any]):
    """A stream function whose streams, or keys, are counted.

    Attributes:
        streams: The opener, which counts the streams.
        table: The keys, once `by_key` was called.

    """

    def __init__(self, fn: StreamFn[Any, Any]) -> None:
        super().__init__(fn._function, fn.config)
        self.streams = self._opener = CountingOpener(self._spec)
        self.table: _core.Keys | None = None

    def by_key(self, events: AsyncIterable[Any], key: Keys) -> _core.KeyedResults[Any]:
        """Run the function for each key: the results with their keys."""
        self.table, guard = keyed(self._spec, events, key.find, MOST_PENDING, "raise", "ignore")
        return _core.KeyedResults(self.table, guard)

    def handled(self) -> int:
        """Return how many events the function is done with, or at. Any thread may ask."""
        if self.table is None:
            return self.streams.handled()
        handled, _, _ = self.table.figures()
        return handled

    def count(self) -> tuple[int, int]:
        """Return how many streams are open, and how many were opened. Any thread may ask."""
        if self.table is None:
            return len(self.streams.live), self.streams.opened
        _, live, opened = self.table.figures()
        return live, opened


class CountingOpener(StreamOpener[Any, Any]):
    """Opens streams, and counts them.

    Attributes:
        opened: The number of streams that were opened so far.
        live: The open streams, by number.
        worked: The number of events that the ended streams have taken.
        taken: The number of events that the stream that ended last has taken.

    """

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.opened = 0
        self.live: dict[int, Stream[Any, Any]] = {}
        self.worked = 0
        self.taken = 0

    async def open_with(self, release: Callable[[], None]) -> Stream[Any, Any]:
        """Open a stream under a permit that was acquired, which `release` gives back."""
        self.opened += 1
        number = self.opened

        def give_back() -> None:
            if (stream := self.live.pop(number, None)) is not None:
                self.taken = _taken(stream)
                self.worked += self.taken
            release()

        stream = await super().open_with(give_back)
        self.live[number] = stream
        return stream

    def handled(self) -> int:
        """Return how many events the function is done with, or at. Any thread may ask."""
        return self.worked + sum(stream._progress()[1] for stream in list(self.live.values()))


def _taken(stream: Stream[Any, Any]) -> int:
    """Return the number of events that the function of an ended stream has taken."""
    sent, handled = stream._progress()
    # Inline, the event at which the function ended does not count as handled.
    return handled + (stream._config.mode == "inline" and handled < sent)
