"""Whether a program that reads all partitions by itself is the only one of its group.

A program with a checkpoint of its own takes no part in its group: it reads everything, from where
its checkpoint says. A second one would handle every record again. So each of them is a member of
a small group beside that, in which nobody reads: who has all partitions there is alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from velo.connect._kafka.assignment import places
from velo.connect._kafka.leaving import leave
from velo.connect._kafka.link import ClientLog
from velo.connect._kafka.places import Name
from velo.connect._kafka.reading import Reading
from velo.connect.errors import ConnectError
from velo.connect.settings import log

__all__ = ["Alone"]

_EVERY = 1.0  # seconds between two looks
# The member of a program that was killed is forgotten after so many milliseconds, which brokers
# allow by default. A program that came later has left after so many seconds.
_SESSION, _LEAVES = 6_000, 15.0


class Alone:
    """A member of the group beside the group. All methods are called in the thread of the reader.

    Args:
        reading: What is read.
        name: The endpoint, for messages.
        known: All partitions.

    """

    def __init__(self, reading: Reading, name: str, known: Collection[Name]) -> None:
        self._name = name
        self._group = reading.group
        self._all = len(known)
        self._mine: set[Name] = set()
        self._was_alone = False
        self._shared_since: float | None = None
        self._look_at = 0.0
        config = {
            **reading.config,
            "group.id": f"velo-alone-{reading.group}",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": _SESSION,
            "heartbeat.interval.ms": _SESSION // 4,
            "enable.partition.eof": False,
        }
        config.pop("group.protocol", None)
        self._consumer: Any = Consumer(config, logger=ClientLog())
        self._consumer.subscribe(
            list(reading.topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )

    def look(self) -> None:
        """Hear of others, once a second.

        Raises:
            ConnectError: When another program reads the same records.

        """
        now = time.monotonic()
        if self._consumer is None or now < self._look_at:
            return
        self._look_at = now + _EVERY
        self._poll()
        if self._shared_since is None:
            return
        # The one that came later leaves at once.
        if not self._was_alone or now > self._shared_since + _LEAVES:
            raise ConnectError(
                f"{self._name}: another program reads for the group {self._group!r} with a "
                "checkpoint of its own: each of them would handle every record. End one of them; "
                "or share the partitions by a checkpoint that all can reach: "
                '`checkpoint="s3://BUCKET/PREFIX"`, or `file:///FOLDER` on one machine'
            )

    def _poll(self) -> None:
        message = self._consumer.poll(0)
        while message is not None:
            if (error := message.error()) is not None and not error.retriable():
                log.info(
                    "%s: it is not known whether another program reads for the group %r with a "
                    "checkpoint of its own: %s",
                    *(self._name, self._group, error.str()),
                )
                return self.close()
            message = self._consumer.poll(0)

    def _on_assign(self, consumer: Consumer, found: list[TopicPartition]) -> None:
        names = [(place.topic, place.partition) for place in found]
        consumer.incremental_assign(places(dict.fromkeys(names, OFFSET_END)))
        consumer.pause(places(names))
        self._mine.update(names)
        self._note()

    def _on_revoke(self, _consumer: Consumer, found: list[TopicPartition]) -> None:
        self._mine.difference_update((place.topic, place.partition) for place in found)
        self._note()

    def _note(self) -> None:
        if len(self._mine) >= self._all:
            self._was_alone, self._shared_since = True, None
        elif self._shared_since is None:
            self._shared_since = time.monotonic()

    def close(self) -> None:
        """Give its partitions away, and leave."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            leave(consumer, lambda: bool(self._mine), stays=False, classic=True)
        finally:
            consumer.close()
