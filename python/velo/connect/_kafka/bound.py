"""Where a source of Kafka ends: `until=`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaException

from velo.connect._kafka.assignment import Assignment, places
from velo.connect._kafka.handover import Handover, Records
from velo.connect._kafka.link import Link, cause, transient
from velo.connect._kafka.places import Ask, Name, ends
from velo.connect._kafka.reading import Reading
from velo.connect.model import record_of
from velo.connect.settings import log

__all__ = ["Bound"]

_AGAIN = 0.5  # seconds between questions what the group has committed
_TIMEOUT = 1.0  # seconds for an answer
# Seconds after which a member is taken to have joined where nothing tells of that. A member that
# ends while it joins cannot leave its group, which then waits for it.
_JOINED = 5.0


class Bound:
    """How far each partition was read, and where it ends.

    With a time that is to come, the ends are known when it has come.

    A member of a group has no partitions before others have given some away, and there may be none
    for it: then it is done when the group has committed all records before the ends.
    """

    def __init__(
        self, consumer: Consumer, reading: Reading, link: Link, known: list[Name], ask: Ask
    ) -> None:
        self._consumer = consumer
        self._reading = reading
        self._link = link
        self._known = set(known)
        self._ask = ask
        self._reached: dict[Name, int] = {}
        self._ends = ends(consumer, known, reading.until, ask)
        self._ask_at = 0.0
        self._joined_at = time.monotonic() + _JOINED
        self._told = False

    def reach(self, name: Name, offset: int) -> None:
        """Note that there is nothing before this offset that was not read."""
        self._reached[name] = offset

    def forget(self, name: Name) -> None:
        """Note that reading of a partition begins, perhaps once more."""
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
        if assignment.waiting or handover.held():
            return False
        if not assignment.names and not self._reading.by_hand:
            # The `consumer` protocol does not tell of an empty assignment.
            late = not self._reading.classic and time.monotonic() > self._joined_at
            joined = assignment.begun or late
            return joined and self._is_committed()
        last = self._ends or {}
        return all(self._reached.get(name, 0) >= last.get(name, 0) for name in assignment.names)

    def _is_committed(self) -> bool:
        """Ask the group whether it has committed all records before the ends."""
        if time.monotonic() < self._ask_at:
            return False
        self._ask_at = time.monotonic() + _AGAIN
        last = self._ends or {}
        try:
            found = self._consumer.committed(places(last), timeout=_TIMEOUT) if last else []
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
                if place.offset < 0:  # nothing is committed, perhaps because there is no record
                    place.offset = self._consumer.get_watermark_offsets(place, timeout=_TIMEOUT)[0]
        except KafkaException as error:
            if transient(cause(error)):
                return False
            raise
        if all(place.offset >= last[place.topic, place.partition] for place in found):
            return True
        if not self._told:
            self._told = True
            log.info(
                "%s: this member has no partitions, and ends once group %r has given it some or "
                "has committed all records before the end",
                *(self._link.name, self._reading.group),
            )
        return False

    def left(self, names: Iterable[Name]) -> dict[Name, tuple[int, int]]:
        """Give the partitions that are not read to their ends: the next offset, and the end."""
        last = self._ends or {}
        found = {name: (self._reached.get(name, 0), last.get(name, 0)) for name in names}
        return {name: (at, end) for name, (at, end) in found.items() if at < end}
