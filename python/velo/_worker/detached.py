"""The detached sessions of a worker, for `velo status`, `velo top` and `velo inspect`.

A detached session has no client, no slot and no ring, so that only its worker knows of it. To
detach and to attach is one entry of a dict; answers are made when they are asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator

from velo._worker.introspection import StreamInfo, name_of
from velo._worker.session import WorkerSession

__all__ = ["DetachedSessions"]

# How many sessions of one worker are shown, those that were detached first, and how many one answer
# names.
_MOST_SHOWN = 4000
_MOST_NAMED = 1000
# How many characters of a name, a key and a function an answer has.
_LONGEST = 250


class DetachedSessions:
    """The detached sessions, by a number that each detachment has alone, in their order."""

    def __init__(self) -> None:
        self._all: dict[int, WorkerSession] = {}
        self._numbers = itertools.count(1)

    def add(self, session: WorkerSession) -> None:
        """Show a session from now on."""
        self.discard(session)
        session.detachment = next(self._numbers)
        session.detached_at = time.monotonic_ns()
        self._all[session.detachment] = session

    def discard(self, session: WorkerSession) -> None:
        """Show it no longer: it is attached, or has ended."""
        self._all.pop(session.detachment, None)

    def since(self, number: int, longest: int) -> str:
        """List the sessions that are shown, and name those above a number, or as many as fit.

        The others are known already. As those are shown that were detached first, the known ones
        come before the new ones.

        Args:
            number: The highest one that is known.
            longest: How many bytes the answer may have.

        Returns:
            JSON: the numbers of those that are shown; the names of new ones; whether there are more
            to name.

        """
        shown = list(itertools.islice(self._all, _MOST_SHOWN))
        new = [one for one in shown if one > number]
        named: list[tuple[int, str, str, str, int, int]] = []
        room = longest - 1024 - len(shown) * (len(str(max(shown, default=0))) + 2)
        for one in new[:_MOST_NAMED]:
            session = self._all[one]
            words = (session.name, session.shown, name_of(session.function))
            name, key, function = (word[:_LONGEST] for word in words)
            # A character is `\uxxxx` at the longest.
            room -= 6 * (len(name) + len(key) + len(function)) + 96
            if room < 0:
                break
            named.append((one, name, key, function, session.began, session.detached_at))
        return json.dumps(
            {
                "shown": shown,
                "named": named,
                "more": len(named) < len(new),
                "now": time.monotonic_ns(),
            }
        )

    def find(self, which: str) -> Iterator[tuple[WorkerSession, StreamInfo]]:
        """Yield those with this name, under this key, or at this place: `detached:PID:NUMBER`."""
        now, here = time.monotonic_ns(), f"detached:{os.getpid()}"
        for number, session in list(self._all.items()):
            names = (session.name, session.shown, f"{here}:{number}")
            if session.task is not None and which in names:
                age = (now - session.began) / 1e9
                detached = (now - session.detached_at) / 1e9
                function = name_of(session.function)
                info = StreamInfo(None, None, function, age, session.task, session.shown, detached)
                yield session, info
