"""Finds the line of an event in the input, once, for the message when a function has failed."""

from __future__ import annotations

from collections import deque
from typing import Any

from velo import _core
from velo.cli.keys import Keys
from velo.cli.parsing import Burst

__all__ = ["EventLines"]

# The least number of events that are known: at most `buffer` of a stream's events are unhandled.
_LEAST = 8192


class EventLines:
    """The events that were read last, with their lines. It costs nothing per event.

    Args:
        least: The least number of events to know.

    """

    def __init__(self, least: int) -> None:
        self._least = max(least, _LEAST)
        self._bursts: deque[Burst] = deque()
        self._known = 0
        self._read = 0

    def add(self, burst: Burst) -> None:
        """Add the next events."""
        count = len(burst.events)
        self._bursts.append(burst)
        self._known += count
        self._read += count
        while self._known - len(self._bursts[0].events) >= self._least:
            self._known -= len(self._bursts.popleft().events)

    def of_event(self, number: int) -> str | None:
        """Return the line of an event, by its number from 0; None if it is too old to be known."""
        at = number - (self._read - self._known)
        if at < 0:
            return None
        for burst in self._bursts:
            if at < len(burst.events):
                return burst.line(at)
            at -= len(burst.events)
        return None

    def of_key(self, keys: Keys, key: object, behind: int) -> tuple[int | None, str | None]:
        """Return the number, from 1, and the line of an event of a key, if they are known.

        Args:
            keys: The keys of the run.
            key: The key.
            behind: The number of this key's events after the wanted one.

        """
        number = self._read
        for burst in reversed(self._bursts):
            for place in range(len(burst.events) - 1, -1, -1):
                number -= 1
                if number < keys.asked and _is_of(burst.events[place], keys.name, key):
                    if behind == 0:
                        return number + 1, burst.line(place)
                    behind -= 1
        return None, None


def _is_of(event: Any, name: str, key: object) -> bool:
    try:
        found = event.key if type(event) is _core.Line else event[name]
    except (TypeError, LookupError):
        return False  # the function has changed it
    return type(found) is type(key) and bool(found == key)
