"""Where a source of Kafka ends: `until=`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer

from velo.connect._kafka.assignment import Assignment
from velo.connect._kafka.handover import Handover, Records
from velo.connect._kafka.places import Ask, Name, ends
from velo.connect._kafka.reading import Reading
from velo.connect.model import record_of

__all__ = ["Bound"]


class Bound:
    """How far each partition was read, and where it ends.

    With a time that is to come, the ends are known when it has come.
    """

    def __init__(self, consumer: Consumer, reading: Reading, known: list[Name], ask: Ask) -> None:
        self._consumer = consumer
        self._reading = reading
        self._known = set(known)
        self._ask = ask
        self._reached: dict[Name, int] = {}
        self._ends = ends(consumer, known, reading.until, ask)

    def reach(self, name: Name, offset: int) -> None:
        """Note that there is nothing before this offset that was not read."""
        self._reached[name] = offset

    def forget(self, name: Name) -> None:
        """Note that a partition is read again from an earlier offset on."""
        self._reached.pop(name, None)

    def cut(self, records: Records) -> Records:
        """Give the records before the end."""
        until: Any = self._reading.until
        found = []
        for item in records:
            record = record_of(item)
            name: Any = record.partition
            self._reached[name] = record.position + 1
            if self._ends is not None:
                inside = record.position < self._ends.get(name, 0)
            else:
                inside = record.timestamp is None or record.timestamp < until
            if inside:
                found.append(item)
        return found

    def done(self, assignment: Assignment, handover: Handover) -> bool:
        """Say whether all is read, and nothing of it is held back."""
        if self._ends is None:
            until: Any = self._reading.until
            if time.time() < until:
                return False
            self._known |= assignment.names
            self._ends = ends(self._consumer, self._known, until, self._ask)
        last = self._ends or {}
        return (
            assignment.begun
            and not assignment.waiting
            and all(self._reached.get(name, 0) >= last.get(name, 0) for name in assignment.names)
            and not handover.held()
        )

    def left(self, names: Iterable[Name]) -> dict[Name, tuple[int, int]]:
        """Give the partitions that are not read to their ends: the next offset, and the end."""
        last = self._ends or {}
        found = {name: (self._reached.get(name, 0), last.get(name, 0)) for name in names}
        return {name: (at, end) for name, (at, end) in found.items() if at < end}
