"""What a worker keeps while nobody is attached to it, for those who look.

It has no client, no slot and no ring, so that only its worker can tell of it. Entering and leaving
is one entry of a dict; what is told is made when somebody asks.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from velo._worker.introspection import Opened, name_of

if TYPE_CHECKING:
    from velo._worker.sessions import Kept

__all__ = ["Parked"]

# So many are shown of one worker, those that are parked longest, and so many named in one answer.
_MOST_SHOWN = 4000
_MOST_NAMED = 1000
# So many characters of a name, a key and a function are told.
_LONGEST = 250


class Parked:
    """The parked streams of a worker, by a number that each parking has alone, in their order."""

    def __init__(self) -> None:
        self._all: dict[int, Kept] = {}
        self._numbers = itertools.count(1)

    def enter(self, kept: Kept) -> None:
        """Have it seen from now on, since nobody is attached to it any more."""
        self.leave(kept)
        kept.parking = next(self._numbers)
        kept.parked_at = time.monotonic_ns()
        self._all[kept.parking] = kept

    def leave(self, kept: Kept) -> None:
        """Have it not seen any more, if it was: somebody is attached, or it is over."""
        self._all.pop(kept.parking, None)

    def since(self, number: int, longest: int) -> str:
        """Say which there are, and name those above a number, or as many as fit.

        What is known is not told again. As only those are shown that are parked longest, whoever
        knows some knows the first ones.

        Args:
            number: The highest one that is known.
            longest: So many bytes may the answer have.

        Returns:
            JSON: the numbers of those that are shown; what is told of new ones; whether there is
            more to tell.

        """
        shown = list(itertools.islice(self._all, _MOST_SHOWN))
        new = [one for one in shown if one > number]
        told: list[tuple[int, str, str, str, int, int]] = []
        room = longest - 1024 - len(shown) * (len(str(max(shown, default=0))) + 2)
        for one in new[:_MOST_NAMED]:
            kept = self._all[one]
            words = (kept.name, kept.shown, name_of(kept.function))
            name, key, function = (word[:_LONGEST] for word in words)
            # A character is `\uxxxx` at the longest.
            room -= 6 * (len(name) + len(key) + len(function)) + 96
            if room < 0:
                break
            told.append((one, name, key, function, kept.began, kept.parked_at))
        return json.dumps(
            {
                "shown": shown,
                "named": told,
                "more": len(told) < len(new),
                "now": time.monotonic_ns(),
            }
        )

    def find(self, which: str) -> Iterator[tuple[Kept, Opened]]:
        """Return the ones with this name, under this key, or at this place: `parked:PID:NUMBER`."""
        now, here = time.monotonic_ns(), f"parked:{os.getpid()}"
        for number, kept in list(self._all.items()):
            if kept.task is not None and which in (kept.name, kept.shown, f"{here}:{number}"):
                age, parked = (now - kept.began) / 1e9, (now - kept.parked_at) / 1e9
                function = name_of(kept.function)
                stream = Opened(None, None, function, age, kept.task, kept.shown, parked)
                yield kept, stream
