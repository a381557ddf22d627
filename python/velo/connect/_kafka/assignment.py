"""Which partitions of Kafka a source reads: by hand, or as its group decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from velo.connect._kafka.handover import Handover
from velo.connect._kafka.leaving import leave
from velo.connect._kafka.link import Link, cause
from velo.connect._kafka.places import Ask, Name, begins
from velo.connect._kafka.reading import Reading
from velo.connect.model import Assigned, Lost, Revoked
from velo.connect.settings import log

__all__ = ["GIVEN_AWAY", "Assignment", "places"]

GIVEN_AWAY = {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID}
"""How the group refuses to commit for a partition that is another member's."""

_WAIT = 0.1  # seconds between looks at requests


def places(offsets: Mapping[Name, int] | Iterable[Name]) -> list[TopicPartition]:
    """Give partitions as the client library takes them, with their offsets where there are some."""
    if isinstance(offsets, Mapping):
        return [TopicPartition(topic, number, at) for (topic, number), at in offsets.items()]
    return [TopicPartition(topic, number) for topic, number in offsets]


def _names(found: Iterable[TopicPartition]) -> list[Name]:
    return [(place.topic, place.partition) for place in found]


class Assignment:
    """The partitions of one consumer. All methods are called in its thread.

    Attributes:
        names: The partitions that are read.
        by_topic: Their names by topic and number, also of those that were given away.
        given: The partitions that were given away or lost since the reader has cleared this.
        waiting: The partitions that the group has given, and that are not read yet.
        begun: Whether there was an assignment, also an empty one.

    """

    def __init__(
        self,
        consumer: Consumer,
        reading: Reading,
        link: Link,
        handover: Handover,
        known: Iterable[Name],
        ask: Ask,
        serve: Callable[[], None],
        on_begin: Callable[[Name], None],
    ) -> None:
        self.names: set[Name] = set()
        self.given: set[Name] = set()
        self.waiting: set[Name] = set()
        self.by_topic: dict[str, dict[int, Name]] = {}
        self.begun = False
        self._leaving = self._left = False
        self._consumer = consumer
        self._reading = reading
        self._link = link
        self._handover = handover
        self._known = set(known)
        self._ask = ask
        self._serve = serve
        self._on_begin = on_begin
        self._first: dict[Name, int] = {}
        self._rewound: set[Name] = set()
        self._warned = False

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            list(self._reading.topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def leave(self) -> None:
        """Give all partitions away; the consumer must be closed next."""
        if self._reading.by_hand:
            return
        self._leaving = True
        try:
            leave(
                self._consumer,
                lambda: bool(self.names or self.waiting),
                # A static member has its partitions again when it comes back.
                stays=self.begun and "group.instance.id" in self._reading.config,
                classic=self._reading.classic,
            )
        finally:
            self._left = True

    def add(self, names: list[Name], committed: Mapping[Name, int] | None = None) -> None:
        """Read these, from the committed offsets or from `start`, and say so."""
        self._read(names, committed or {})
        self._handover.put(Assigned(tuple(names)))

    def place(self, positions: Mapping[Name, int | None]) -> None:
        """Read partitions that wait for that behind these positions; None: as `add`."""
        if not (names := [name for name in positions if name in self.waiting]):
            return
        self.waiting.difference_update(names)
        begin = {name: at + 1 for name in names if (at := positions[name]) is not None}
        known = self._committed([name for name in names if name not in begin])
        if known:
            log.warning(
                "%s: no state is known of %s, which begin with empty states where the group %r has "
                "committed",
                *(self._link.name, sorted(known), self._reading.group),
            )
        self._read(names, begin | known)

    def is_given(self, name: Name) -> bool:
        """Ask the group whether a partition is still this member's.

        Raises:
            KafkaException: When it is another member's, or the group does not answer.

        """
        if name not in self.names and name not in self.waiting:
            return False
        # Only a commit has the group look at the member and its generation. So what is committed is
        # committed once more; where nothing is, the beginning of the partition.
        timeout = self._reading.connect_timeout
        (place,) = self._consumer.committed(places([name]), timeout=timeout)
        if place.offset < 0:
            place.offset = self._consumer.get_watermark_offsets(place, timeout=timeout)[0]
        at = {name: place.offset}
        for place in self._consumer.commit(offsets=places(at), asynchronous=False):
            if place.error is not None:
                raise KafkaException(place.error)
        return True

    def give_again(self, name: Name) -> None:
        """Read no more of a partition until it is placed, and say that it was assigned."""
        if name in self.names:
            self._consumer.incremental_unassign(places([name]))
            self.names.discard(name)
        self._handover.forget([name])
        self.waiting.add(name)
        self._handover.put(Assigned((name,)))

    def _read(self, names: list[Name], committed: Mapping[Name, int]) -> None:
        reading, consumer = self._reading, self._consumer
        fresh = [name for name in names if name not in committed]
        first = begins(consumer, fresh, reading.start, self._known, self._ask)
        latest = {name: at for name, at in first.items() if at >= 0}
        if latest and reading.group is not None and reading.start == "latest":
            # Otherwise a member that takes over before the first commit begins later than this one.
            self._commit(latest)
        first.update(committed)
        self._first |= first
        self.begun = True
        for name in names:
            self.by_topic.setdefault(name[0], {})[name[1]] = name
            self._on_begin(name)
        self._take(names, first)

    def _take(self, names: list[Name], first: Mapping[Name, int]) -> None:
        self.names.update(names)
        if self._reading.cooperative:
            self._consumer.incremental_assign(places(first))
        else:
            self._consumer.assign(places(first))

    def add_by_hand(self, names: list[Name]) -> None:
        """Read these, from the positions of a checkpoint, else as `add`."""
        sought = self._reading.sought or {}
        begin = {name: sought[name] + 1 for name in names if name in sought}
        if self._reading.group is not None:
            begin |= self._committed([name for name in names if name not in begin])
        self.add(names, begin)

    def warn_of_members(self) -> None:
        """Say, once, that the group stores no positions of others while it has members."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: nothing is committed for the group %r, because it has members, which read "
                "the same records: end them, or choose another `group` beside a checkpoint",
                self._link.name,
                self._reading.group,
            )

    def lag(self) -> dict[Name, int]:
        """Give the records behind the last one read, as the last answers of the brokers tell."""
        lag = {}
        for place in self._consumer.position(places(self.names)):
            name = place.topic, place.partition
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(place.topic, place.partition), cached=True
            )
            if high >= 0:
                lag[name] = max(0, high - max(low, self._first[name], place.offset))
        return lag

    def _wait(self, names: list[Name]) -> None:
        """Take partitions without reading them: only `place` says where they begin."""
        self._handover.forget(names)
        self.waiting.update(names)
        self.begun = True
        self._consumer.incremental_assign([])  # otherwise the client reads them
        self._handover.put(Assigned(tuple(names)))

    def _give(self, names: list[Name]) -> None:
        if self._reading.placed:
            # Those alone that the client has: it refuses others.
            self._consumer.incremental_unassign(places(self.names.intersection(names)))
        self.names.difference_update(names)
        self.waiting.difference_update(names)
        self.given.update(names)

    def _commit(self, offsets: dict[Name, int]) -> None:
        try:
            self._ask(lambda: self._consumer.commit(offsets=places(offsets), asynchronous=False))
        except KafkaException as error:
            if not self._reading.by_hand or cause(error).code() not in GIVEN_AWAY:
                raise
            self.warn_of_members()

    def _committed(self, names: list[Name]) -> dict[Name, int]:
        """Ask for the committed offsets."""
        reading = self._reading
        if isinstance(reading.start, Mapping):
            return {}
        if reading.rewind:
            names, new = [n for n in names if n in self._rewound], names
            self._rewound.update(new)
        if not names:
            return {}
        timeout = reading.connect_timeout
        found = self._ask(lambda: self._consumer.committed(places(names), timeout=timeout))
        return {(at.topic, at.partition): at.offset for at in found if at.offset >= 0}

    # Called by the client library, within `poll`.

    def _on_assign(self, _consumer: Consumer, found: list[TopicPartition]) -> None:
        if self._left:
            # The client gives them back by itself. It refuses an assignment while it closes, and
            # may then never return.
            return
        names = _names(found)
        if self._leaving:
            self._take(names, dict.fromkeys(names, OFFSET_END))  # it is taken back at once
        elif self._reading.placed:
            self._wait(names)
        else:
            self.add(names, self._committed(names))

    def _on_revoke(self, _consumer: Consumer, found: list[TopicPartition]) -> None:
        """Hand the revocation on, and wait until the records before it are handled."""
        names = _names(found)
        self._handover.forget(names)
        if names and not self._handover.stopping and not self._leaving:
            self._handover.put(Revoked(tuple(names)))
            self._wait_for_handling(names)
        self._give(names)

    def _wait_for_handling(self, names: list[Name]) -> None:
        deadline = time.monotonic() + self._reading.revoke_timeout
        while not self._handover.handled(min(_WAIT, self._reading.revoke_timeout)):
            self._serve()
            if time.monotonic() > deadline:
                self._handover.put(Lost(tuple(names)))
                log.warning(
                    "%s: %s go to another member of the group before their records are handled: "
                    "that took more than %g s (`revoke_timeout`), and they come again",
                    self._link.name,
                    names,
                    self._reading.revoke_timeout,
                )
                return
        self._serve()

    def _on_lost(self, _consumer: Consumer, found: list[TopicPartition]) -> None:
        names = _names(found)
        self._give(names)
        self._handover.forget(names)
        if names and not self._leaving:
            self._handover.put(Lost(tuple(names)))
