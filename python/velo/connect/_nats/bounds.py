"""Where reading of a stream of JetStream begins and ends."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["Bound", "check_start", "check_until", "policy"]


def check_start(start: Any) -> None:
    """Refuse what is no place to begin.

    Raises:
        ValueError: When it is none of the kinds that exist.

    """
    if isinstance(start, Mapping):
        for position in start.values():
            if isinstance(position, bool) or not isinstance(position, int):
                raise ValueError(f"start={start!r}: a position is the sequence of a message")
    elif start not in ("earliest", "latest", "committed") and not _number(start):
        raise ValueError(
            f"start={start!r}: one of 'earliest', 'latest', 'committed', seconds since the epoch, "
            "or the sequence of the last message that was handled, by stream"
        )


def check_until(until: Any) -> None:
    """Refuse what is no place to end; as `check_start`."""
    if until not in (None, "end") and not _number(until):
        raise ValueError(f'until={until!r}: None, "end" or seconds since the epoch')


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def policy(start: Any, stream: str) -> dict[str, Any]:
    """Give the settings of a consumer that begins at `start`."""
    if isinstance(start, Mapping):
        if (position := start.get(stream)) is None:
            return {"deliver_policy": "all"}
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": position + 1}
    if start == "latest":
        return {"deliver_policy": "new"}
    if _number(start):
        time = datetime.datetime.fromtimestamp(start, datetime.UTC)
        return {"deliver_policy": "by_start_time", "opt_start_time": time}
    return {"deliver_policy": "all"}


class Bound:
    """The end of one stream.

    Attributes:
        reached: No message that comes from now on is to be given, except those again that were
            delivered before.
        last: All messages to be given lie at or below this sequence, as far as is known.

    """

    def __init__(self, until: Any, last_sequence: int) -> None:
        self.exists = until is not None
        self.reached = until == "end" and last_sequence == 0
        self.last = last_sequence if until == "end" else math.inf
        self._until = until

    def holds(self, sequence: int, timestamp: float, pending: int) -> bool:
        """Tell whether a message is to be given; `pending` of the stream's come behind it."""
        if self._until is None:
            return True
        if self._until == "end":
            self.reached = self.reached or sequence >= self.last or pending == 0
            return sequence <= self.last
        if timestamp >= self._until:
            self.reached = True
            self.last = min(self.last, sequence - 1)
            return False
        return True

    def caught_up(self, now: float) -> None:
        """Note that nothing more is there at this moment."""
        if self._until == "end" or (self.exists and now > self._until):
            self.reached = True
