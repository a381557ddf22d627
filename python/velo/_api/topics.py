"""Partitions that are added to a topic take keys from the others."""

from __future__ import annotations

import logging

__all__ = ["Topics"]

_log = logging.getLogger("velo.connect")


class Topics:
    """How many partitions topics have.

    Args:
        name: The function.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: dict[str, int] = {}
        self._told: set[tuple[str, int, int]] = set()

    def look(self, topic: str, count: int, noted: int | None) -> None:
        """Warn, once, where a topic has more partitions than before.

        Args:
            topic: The topic.
            count: How many it has.
            noted: How many it had at the last tick of a shard; None: that is not known.

        """
        known = self._counts.get(topic)
        now = self._counts[topic] = max(count, known or 0)
        for before in (known, noted):
            if before is None or before >= now or (topic, before, now) in self._told:
                continue
            self._told.add((topic, before, now))
            _log.warning(
                "%s: the topic `%s` has %d partitions, and had %d when this state began: producers "
                "that choose the partition by the key send some keys to another one now, where "
                "they begin with an empty state, and their state stays behind. To have each key "
                "whole again, begin with a new checkpoint, and read what the topic holds from its "
                "start",
                *(self._name, topic, now, before),
            )
