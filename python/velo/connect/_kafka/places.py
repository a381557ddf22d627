"""Where the partitions of a Kafka topic begin and end, as offsets."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

__all__ = [
    "Ask",
    "Name",
    "Start",
    "Until",
    "begins",
    "check_start",
    "check_until",
    "ends",
    "partitions",
]

Name = tuple[str, int]
"""The name of a partition: topic and number."""

Start = Literal["committed", "earliest", "latest"] | float | Mapping[Name, int]
Until = Literal["end"] | float | None

Ask = Callable[[Callable[[], list[Any]]], list[Any]]
"""Makes a call until it is answered for all partitions; see `Link.ask`."""

_TIMEOUT = 10.0  # seconds for one call
_END = -1  # the time that ListOffsets takes for the end


def check_start(start: Any) -> None:
    """Refuse what is no `start`."""
    if isinstance(start, bool) or not (
        start in ("committed", "earliest", "latest") if isinstance(start, str)
        else isinstance(start, int | float | Mapping)
    ):  # fmt: skip
        raise ValueError(
            f'start={start!r}: one of "committed", "earliest", "latest", seconds since the epoch, '
            "or the last handled position of each partition"
        )


def check_until(until: Any) -> None:
    """Refuse what is no `until`."""
    if until not in (None, "end") and (
        isinstance(until, bool) or not isinstance(until, int | float)
    ):
        raise ValueError(f'until={until!r}: one of None, "end", or seconds since the epoch')


def partitions(found: Mapping[str, Any], topics: Iterable[str]) -> list[Name]:
    """Give the partitions of topics, of which some may be patterns `^...`, out of metadata."""
    patterns = [re.compile(topic) for topic in topics if topic.startswith("^")]
    plain = {topic for topic in topics if not topic.startswith("^")}
    return [
        (topic, number)
        for topic, metadata in found.items()
        if topic in plain or any(pattern.match(topic) for pattern in patterns)
        for number in metadata.partitions
    ]


def _offsets(consumer: Consumer, names: Iterable[Name], moment: int, ask: Ask) -> dict[Name, int]:
    """Give the first offset of each partition at or after a moment in milliseconds; -1 for none."""
    asked = [TopicPartition(topic, number, moment) for topic, number in names]
    if not asked:
        return {}
    found = ask(lambda: consumer.offsets_for_times(asked, timeout=_TIMEOUT))
    return {(place.topic, place.partition): place.offset for place in found}


def ends(
    consumer: Consumer, names: Iterable[Name], until: Until, ask: Ask
) -> dict[Name, int] | None:
    """Give the offset behind the last record of each partition; None while `until` is to come."""
    names = list(names)
    last = _offsets(consumer, names, _END, ask)
    if until == "end":
        return last
    assert isinstance(until, int | float)
    if time.time() < until:
        return None
    first = _offsets(consumer, names, round(until * 1000), ask)
    return {name: last[name] if first[name] < 0 else first[name] for name in names}


def begins(
    consumer: Consumer, names: Iterable[Name], start: Start, known: set[Name], ask: Ask
) -> dict[Name, int]:
    """Give the offset at which each partition begins that has no committed one.

    A partition that was made after the source has begun is read from its first record also with
    `start="latest"`: all of its records are new.
    """
    names = list(names)
    if isinstance(start, Mapping):
        return {name: start[name] + 1 if name in start else OFFSET_BEGINNING for name in names}
    if start in ("committed", "earliest"):
        return dict.fromkeys(names, OFFSET_BEGINNING)
    found = dict.fromkeys((name for name in names if name not in known), OFFSET_BEGINNING)
    names = [name for name in names if name in known]
    last = _offsets(consumer, names, _END, ask)
    if start == "latest":
        return found | last
    assert isinstance(start, int | float)
    first = _offsets(consumer, names, round(start * 1000), ask)
    return found | {name: last[name] if first[name] < 0 else first[name] for name in names}
