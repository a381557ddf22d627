"""The sources that this process reads now, and what their drivers have done."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = ["SourceFigures", "forget", "note", "sources"]


class SourceFigures(NamedTuple):
    """A snapshot of one source that is read.

    Attributes:
        records: The records that were read.
        bad: Those that could not be decoded or had no key.
        dead_letters: Those that went to the dead letters.
        dropped: Those that failed and were dropped.
        retried: How often a record was tried again.
        commits: How often positions were committed.
        redelivered: The records that the server says it had delivered before.
        reconnects: How often the connection was made again.
        lag: By partition, how many records there are beyond the last one that was read; empty where
            that is not known.
        committed: By partition, the last committed position, where it is a number.

    """

    records: int
    bad: int
    dead_letters: int
    dropped: int
    retried: int
    commits: int
    redelivered: int
    reconnects: int
    lag: Mapping[Hashable, int]
    committed: Mapping[Hashable, int]


class _Driver(Protocol):
    source: Any
    name: str
    figures: Any


_drivers: weakref.WeakSet[Any] = weakref.WeakSet()


def note(driver: _Driver) -> None:
    """Count a driver among those that run."""
    _drivers.add(driver)


def forget(driver: _Driver) -> None:
    """Count it no more."""
    _drivers.discard(driver)


def sources() -> Iterator[tuple[str, str, SourceFigures]]:
    """Give the function, the source and the figures of each driver that runs."""
    for driver in list(_drivers):
        source, done = driver.source, driver.figures
        lag = getattr(source, "lag", None)
        numbers = {p: at for p, at in done.committed.items() if isinstance(at, int)}
        figures = SourceFigures(
            records=done.read,
            bad=done.bad,
            dead_letters=done.dead_letters,
            dropped=done.dropped,
            retried=done.retried,
            commits=done.commits,
            redelivered=getattr(source, "redelivered", 0),
            reconnects=getattr(source, "reconnects", 0),
            lag={} if lag is None else lag(),
            committed=numbers,
        )
        yield driver.name, getattr(source, "name", type(source).__name__), figures
