"""What the thread that reads looks at from time to time: outages, silence, lag, new partitions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaException

from velo.connect._kafka.assignment import Assignment
from velo.connect._kafka.bound import Bound
from velo.connect._kafka.handover import Handover
from velo.connect._kafka.link import Link
from velo.connect._kafka.places import Name, partitions
from velo.connect._kafka.reading import Reading
from velo.connect.errors import NoSuchTopic
from velo.connect.settings import log

__all__ = ["Lookout"]

_LOOK = 1.0  # seconds between looks
_ALIVE = 0.5  # seconds for an answer to the question whether a broker lives
# Seconds without a record, after which a source that has an end says what it waits for.
_SILENT = 30.0


class Lookout:
    """Looks around, and says what it finds.

    Attributes:
        lag: How far each partition was not read, at the last look.

    """

    def __init__(self, reading: Reading, link: Link, handover: Handover) -> None:
        self.lag: dict[Name, int] = {}
        self._reading = reading
        self._link = link
        self._handover = handover
        self._look_at = 0.0
        self._refresh_at = time.monotonic() + reading.refresh
        self._heard_at = time.monotonic()
        self._told_silence = False

    def heard(self) -> None:
        """Note that a record has come, or the end of a partition, or that none is asked for."""
        self._heard_at, self._told_silence = time.monotonic(), False

    def look(self, consumer: Consumer, assignment: Assignment, bound: Bound | None) -> None:
        """Look around, if it is time."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK
        if self._link.down or self._link.doubtful:
            self._ask_for_life(consumer)
        if bound is not None and now > self._heard_at + _SILENT and not self._told_silence:
            self._tell_silence(assignment, bound)
        if assignment.names:
            self.lag = assignment.lag()
        if self._reading.by_hand and now >= self._refresh_at:
            self._refresh_at = now + self._reading.refresh
            self._find_new_partitions(consumer, assignment)

    def partitions(self, metadata_of: Callable[[str | None], Any]) -> list[Name]:
        """Ask which partitions there are; each topic that is named must exist."""
        found = {}
        for topic in [*self._reading.plain, *([None] if self._reading.pattern else [])]:
            metadata = metadata_of(topic)
            if topic is not None and (error := metadata.topics[topic].error) is not None:
                raise self._link.named(error, topic)
            found.update(metadata.topics)
        return partitions(found, self._reading.topics)

    def _tell_silence(self, assignment: Assignment, bound: Bound) -> None:
        """Say, once, what a source with an end waits for."""
        if self._link.down or self._handover.held() or assignment.waiting:
            return  # an outage is told of; or it waits for those that handle, or for their word
        if left := sorted(bound.left(assignment.names).items()):
            awaited = ", ".join(f"{name} from {at} to {end}" for name, (at, end) in left)
        elif not assignment.names and not self._reading.by_hand:
            awaited = (
                f"partitions: group {self._reading.group!r} gives this member none, and has not "
                "committed all records before the end"
            )
        else:
            return
        self._told_silence = True
        log.warning(
            "%s: has read nothing for %g s, and goes on waiting for %s",
            *(self._link.name, _SILENT, awaited),
        )

    def _ask_for_life(self, consumer: Consumer) -> None:
        # The client may ask over a connection that is not made again yet.
        try:
            consumer.list_topics(next(iter(self._reading.plain), None), timeout=_ALIVE)
        except KafkaException:
            if not self._link.down:
                self._link.lost()
        else:
            self._link.answered()

    def _find_new_partitions(self, consumer: Consumer, assignment: Assignment) -> None:
        # Without `Link.metadata`, whose poll would swallow a record.
        try:
            found = self.partitions(lambda topic: consumer.list_topics(topic, timeout=_LOOK))
        except (KafkaException, NoSuchTopic) as error:
            log.info("%s: no look for new partitions: %s", self._link.name, error)
            return
        if new := [name for name in found if name not in assignment.names]:
            assignment.add_by_hand(new)
