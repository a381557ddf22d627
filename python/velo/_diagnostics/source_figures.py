"""The sources that this process reads now, and what their drivers have done."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = ["SourceFigures", "forget", "label_of", "lag_of", "name_of", "note", "sources"]

_log = logging.getLogger("velo.connect")


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
# The types whose `lag` has failed: each is told once.
_failed: weakref.WeakSet[Any] = weakref.WeakSet()


def note(driver: _Driver) -> None:
    """Count a driver among those that run."""
    _drivers.add(driver)


def forget(driver: _Driver) -> None:
    """Count it no more."""
    _drivers.discard(driver)


def sources() -> Iterator[tuple[str, str, SourceFigures]]:
    """Give function, source and figures of what runs; what has the same names is one."""
    known: dict[tuple[str, str], SourceFigures] = {}
    for driver in list(_drivers):
        names = driver.name, name_of(driver.source)
        figures, before = _figures(driver), known.get(names)
        known[names] = figures if before is None else _joined(before, figures)
    for (function, source), figures in known.items():
        yield function, source, figures


def name_of(endpoint: Any) -> str:
    """Give the name of a source or a sink, for messages and metrics."""
    return getattr(endpoint, "name", None) or type(endpoint).__name__


def label_of(partition: object) -> str:
    """Give the label of a partition: `payments/3` for a tuple."""
    return "/".join(map(str, partition)) if isinstance(partition, tuple) else str(partition)


def lag_of(source: Any) -> Mapping[Hashable, int]:
    """Give the lag that a source knows of; of one that fails to say so, none, and a warning."""
    if (lag := getattr(source, "lag", None)) is None:
        return {}
    try:
        return {partition: int(count) for partition, count in lag().items()}
    except Exception as error:
        if type(source) not in _failed:
            _failed.add(type(source))
            _log.warning("`lag` of the source `%s` failed: %r", name_of(source), error)
        return {}


def _figures(driver: _Driver) -> SourceFigures:
    source, done = driver.source, driver.figures
    return SourceFigures(
        records=done.read,
        bad=done.bad,
        dead_letters=done.dead_letters,
        dropped=done.dropped,
        retried=done.retried,
        commits=done.commits,
        redelivered=getattr(source, "redelivered", 0),
        reconnects=getattr(source, "reconnects", 0),
        lag=lag_of(source),
        committed={p: at for p, at in done.committed.items() if isinstance(at, int)},
    )


def _joined(one: SourceFigures, other: SourceFigures) -> SourceFigures:
    """Join the figures of two runs over sources of one name: their counts are added."""
    return SourceFigures(
        records=one.records + other.records,
        bad=one.bad + other.bad,
        dead_letters=one.dead_letters + other.dead_letters,
        dropped=one.dropped + other.dropped,
        retried=one.retried + other.retried,
        commits=one.commits + other.commits,
        redelivered=one.redelivered + other.redelivered,
        reconnects=one.reconnects + other.reconnects,
        lag=_highest(one.lag, other.lag),
        committed=_highest(one.committed, other.committed),
    )


def _highest(one: Mapping[Hashable, int], other: Mapping[Hashable, int]) -> dict[Hashable, int]:
    return {
        p: max(n for n in (one.get(p), other.get(p)) if n is not None) for p in {**one, **other}
    }
