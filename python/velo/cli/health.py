"""Whether a run is ready and alive, decided from samples of it, without a clock of its own.

A sample says how far the run is. A *history* of samples says since when each part of it stands
still, and so whether somebody has to look at it, or start it anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from velo._diagnostics.waits import Wait

__all__ = ["History", "Part", "Sample", "extended", "why_not_live", "why_not_ready"]

# The most seconds between two samples that count: what is beyond, the process stood still, or a
# function held its event loop, and nothing else could go on.
_MOST = 5.0


class Part(NamedTuple):
    """How far the run is in one partition of its input.

    Attributes:
        read: How many records were read of it.
        handled: How many of those are handled, up to the first that is not.
        full: Whether nothing more is read, because too many records are not handled.
        lag: How many records there are beyond the last one that was read, where that is known.

    """

    read: int
    handled: int
    full: bool = False
    lag: int | None = None


@dataclass(frozen=True)
class Sample:
    """How far the run is.

    Attributes:
        at: When that was, in seconds of any clock.
        reading: Whether the input is read.
        stopping: Whether the run was told to end.
        pending: How many events were read and are not handled.
        moved: What changes whenever events are read or handled, or results come.
        parts: The partitions of the input.
        waits: What it waits for.

    """

    at: float
    reading: bool = True
    stopping: bool = False
    pending: int = 0
    moved: Hashable = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    waits: Sequence[Wait] = ()


class _Standing(NamedTuple):
    """Since when one partition stands still, in seconds that count.

    Attributes:
        unread: Since when no record was read, and the lag is higher than before.
        lag: The lag before that. It need not be 0 where all is read: Kafka counts the ends of
            transactions as well.
        unhandled: Since when the first record is not handled, and no more are read.

    """

    unread: float
    lag: int
    unhandled: float


@dataclass(frozen=True)
class History:
    """The last sample, and since when things are as it says.

    Attributes:
        last: The last sample.
        time: When that was, in seconds that count.
        unmoved: Since when nothing moves, or there is nothing to do.
        parts: Since when partitions stand still.
        waits: Since when it waits.

    """

    last: Sample
    time: float
    unmoved: float
    parts: Mapping[str, _Standing]
    waits: Mapping[Wait, float]


def extended(history: History | None, sample: Sample) -> History:
    """Add a sample to a history; None: it is the first."""
    if history is None:
        parts = {name: _Standing(0.0, part.lag or 0, 0.0) for name, part in sample.parts.items()}
        return History(sample, 0.0, 0.0, parts, dict.fromkeys(sample.waits, 0.0))
    last = history.last
    time = history.time + min(sample.at - last.at, _MOST)
    # While a server is away, or a call takes long, that is what is to be told.
    excused = any(wait.server is not None or wait in history.waits for wait in sample.waits)
    still = not excused and sample.pending and sample.moved == last.moved
    parts = {}
    for name, part in sample.parts.items():
        before, then = history.parts.get(name), last.parts.get(name)
        if excused or before is None or then is None:
            parts[name] = _Standing(time, part.lag or 0, time)
        else:
            parts[name] = _standing(before, then, part, time)
    return History(
        sample,
        time,
        unmoved=history.unmoved if still else time,
        parts=parts,
        waits={wait: history.waits.get(wait, time) for wait in sample.waits},
    )


def _standing(before: _Standing, then: Part, now: Part, time: float) -> _Standing:
    unread, lag, unhandled = before
    if now.read != then.read or (now.lag or 0) <= lag:
        unread, lag = time, now.lag or 0
    if now.handled != then.handled or not now.full:
        unhandled = time
    return _Standing(unread, lag, unhandled)


def why_not_ready(history: History | None, now: float, patience: float) -> list[str]:
    """Say why the run is not ready: it does not consume its input, or its results do not arrive.

    Args:
        history: What is known of it; None: it has not begun.
        now: The time, by the clock of the samples.
        patience: How many seconds things may stand still.

    """
    if history is None or not (history.last.reading or history.last.stopping):
        return ["it does not read yet: it begins, or its input has ended"]
    if history.last.stopping:
        return ["it is stopping: it works on what was read, and reads no more"]
    return [
        *_held_loop(history, now, patience),
        *_lost_servers(history),
        *_long_waits(history, patience),
        *_standstills(history, patience),
    ]


def why_not_live(history: History | None, now: float, patience: float) -> list[str]:
    """Say why the run is to be started anew.

    A server that is away, or takes long, is no reason: it would be the same afterwards. A run that
    stops ends by itself, within `--drain`.

    Args:
        history: What is known of it; None: it has not begun.
        now: The time, by the clock of the samples.
        patience: How many seconds things may stand still.

    """
    if history is None:
        return []
    if history.last.stopping:
        return []
    return _held_loop(history, now, patience) or _standstills(history, patience)


def _held_loop(history: History, now: float, patience: float) -> list[str]:
    if (silent := now - history.last.at) <= patience:
        return []
    return [
        f"its event loop has not run for {silent:.0f} s: a function holds it, or the machine is "
        "overloaded"
    ]


def _lost_servers(history: History) -> list[str]:
    return [
        f"{wait.of}: no connection to {wait.server} for {history.time - since:.0f} s: {wait.what}"
        for wait, since in history.waits.items()
        if wait.server is not None
    ]


def _long_waits(history: History, patience: float) -> list[str]:
    return [
        f"{wait.what} of `{wait.of}` has not returned for {waited:.0f} s"
        for wait, since in history.waits.items()
        if wait.server is None and (waited := history.time - since) > patience
    ]


def _standstills(history: History, patience: float) -> list[str]:
    found = []
    for name, part in history.last.parts.items():
        unread, lag, unhandled = history.parts[name]
        if (seconds := history.time - unread) > patience:
            found.append(
                f"nothing of {name} was consumed for {seconds:.0f} s, though its lag has grown "
                f"from {lag:,} to {part.lag or 0:,}"
            )
        if (seconds := history.time - unhandled) > patience:
            found.append(
                f"nothing of {name} was consumed for {seconds:.0f} s: {part.read - part.handled:,} "
                "records of it are on their way, and the first of them is not handled"
            )
    if (seconds := history.time - history.unmoved) > patience and not found:
        found.append(
            f"{history.last.pending:,} events were read, and none was handled for {seconds:.0f} s"
        )
    return found
