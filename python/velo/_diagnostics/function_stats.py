"""Totals over the streams of each function of this process, by name and mode.

They include functions that are gone: totals never go down.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator

from velo import _core

__all__ = ["FunctionTotals", "keep", "totals"]

# The name of a function, its mode, and the sums over all functions with both.
FunctionTotals = tuple[str, str, _core.FunctionStats]

_Key = tuple[str, str]

_numbers = itertools.count()
_lock = threading.Lock()
# Stats of the functions that exist, each under a number of its own.
_live: dict[int, tuple[_Key, _core.FunctionStats]] = {}
# Stats of functions that are gone, but may still have open streams.
_gone: list[tuple[_Key, _core.FunctionStats]] = []
# Sums over functions that are gone and have no open stream.
_past: dict[_Key, _core.FunctionStats] = {}
# Every so many functions that are gone are summed up.
_EVERY = 64


def keep(owner: object, function: str, mode: str, stats: _core.FunctionStats) -> None:
    """Count the stats of a function, also after their owner is gone."""
    number = next(_numbers)
    _live[number] = ((function, mode), stats)
    # Not at exit: no one reads totals any more.
    weakref.finalize(owner, _move, number).atexit = False


def _move(number: int) -> None:
    # Garbage collection calls this anywhere, even in the middle of `totals`: it takes no lock, and
    # the stats are in one of both collections at any time.
    _gone.append(_live[number])
    del _live[number]
    # Functions that are made again and again are summed up before somebody looks, too.
    if len(_gone) % _EVERY == 0 and _lock.acquire(blocking=False):
        try:
            _absorb()
        finally:
            _lock.release()


def _absorb() -> list[_core.FunctionStats]:
    """Sum up the functions that are gone and whose streams are over; return their stats."""
    absorbed = []
    for entry in _gone.copy():
        key, stats = entry
        if stats.figures()["open"] == 0:
            _past.setdefault(key, _core.FunctionStats()).absorb(stats, past=True)
            _gone.remove(entry)
            absorbed.append(stats)
    return absorbed


def totals() -> Iterator[FunctionTotals]:
    """Yield the totals of all functions that have opened a stream."""
    with _lock:
        # Stats that move from one to the other meanwhile are in both, and count once.
        counted = {id(entry[1]): entry for entry in [*_live.copy().values(), *_gone.copy()]}
        for stats in _absorb():
            counted.pop(id(stats), None)
        sums: dict[_Key, _core.FunctionStats] = {}
        for key, stats in [*_past.items(), *counted.values()]:
            sums.setdefault(key, _core.FunctionStats()).absorb(stats)
    for (function, mode), stats in sums.items():
        if stats.figures()["opened"] > 0:
            yield function, mode, stats
