"""A stream function that knows its streams: how many there are, and what they have worked on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from velo import Stream, StreamFn
from velo._api.opener import StreamOpener
from velo.cli.keys import Keys

__all__ = ["Counted", "CountingOpener"]

# Of more streams than that, the events are counted so many seconds apart.
_FEW, _PAUSE = 1000, 2.0
# One of so many streams that have ended is the one that has failed.
_MOST_ENDED = 4096


class Counted(StreamFn[Any, Any]):
    """A stream function whose streams are counted.

    Attributes:
        streams: The streams.

    """

    def __init__(self, fn: StreamFn[Any, Any], keys: Keys | None = None) -> None:
        super().__init__(fn._function, fn.config)
        self.streams = self._opener = CountingOpener(self._spec, keys)

    def keyed(self, events: Any, key: Any, **_settings: Any) -> Any:
        """Run one stream for each key, which can be counted one by one."""
        from velo._api.keyed import keyed

        return keyed(self._opener, events, key)


class CountingOpener(StreamOpener[Any, Any]):
    """Opens streams, and counts them.

    Attributes:
        opened: How many were opened so far.
        live: Those that are open.
        worked: How many events the others have taken.
        ended: Of those that have ended last: the key, at which event each was opened, and which of
            its own it took last.

    """

    def __init__(self, spec: Any, keys: Keys | None) -> None:
        super().__init__(spec)
        self.opened = 0
        self.live: dict[int, Stream[Any, Any]] = {}
        self.worked = 0
        self.ended: deque[tuple[Any, int, int]] = deque(maxlen=_MOST_ENDED)
        self._keys = keys
        self._seen = (0.0, 0)

    async def open_with(
        self, release: Callable[[], None], name: str | None = None
    ) -> Stream[Any, Any]:
        """Open a stream under a permit that was acquired, which `release` gives back."""
        self.opened += 1
        number = self.opened
        # It is opened for the event that was asked for its key last.
        key, since = (None, 1) if self._keys is None else (self._keys.last, self._keys.asked)

        def give_back() -> None:
            if (stream := self.live.pop(number, None)) is not None:
                taken = _taken(stream)
                self.worked += taken
                self.ended.append((key, since, taken))
            release()

        stream = await super().open_with(give_back, name)
        self.live[number] = stream
        return stream

    def handled(self) -> int:
        """Return how many events the function is done with, or at. Any thread may ask."""
        live = list(self.live.values())
        when, before = self._seen
        if len(live) > _FEW and time.monotonic() < when + _PAUSE:
            return max(before, self.worked)
        handled = self.worked + sum(stream._progress()[1] for stream in live)
        self._seen = (time.monotonic(), handled)
        return handled


def _taken(stream: Stream[Any, Any]) -> int:
    """Return how many events the function of a stream that is over has taken."""
    sent, handled = stream._progress()
    # Inline, the event that it was at when it ended does not count as handled.
    return handled + (stream._config.mode == "inline" and handled < sent)
