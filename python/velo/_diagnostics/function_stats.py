"""What the functions of this process have done, by name and mode, those that are gone included."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator

from velo import _core

__all__ = ["Account", "keep", "totals"]

# All functions of one name in one mode, together.
Account = tuple[str, str, _core.Ledger]

_Key = tuple[str, str]

_numbers = itertools.count()
_lock = threading.Lock()
# Ledgers of functions that are there, by a number of their own; of functions that are gone, whose
# streams may go on; and the sums of those whose streams are over, too.
_open: dict[int, tuple[_Key, _core.Ledger]] = {}
_left: list[tuple[_Key, _core.Ledger]] = []
_past: dict[_Key, _core.Ledger] = {}


def keep(owner: object, function: str, mode: str, ledger: _core.Ledger) -> None:
    """Count what is in a ledger, which outlives its owner here: counters never go down."""
    number = next(_numbers)
    _open[number] = ((function, mode), ledger)
    # Not at exit: nobody looks any more.
    weakref.finalize(owner, _leave, number).atexit = False


def _leave(number: int) -> None:
    # Wherever the last reference went, maybe in the middle of `totals`: without the lock, and so
    # that it is never in neither.
    _left.append(_open[number])
    del _open[number]


def totals() -> Iterator[Account]:
    """Return the sums of all functions that have opened a stream."""
    with _lock:
        # What moves from one to the other meanwhile is in both, and counted once.
        counted = {id(entry[1]): entry for entry in [*_open.copy().values(), *_left.copy()]}
        for entry in _left.copy():
            key, ledger = entry
            if ledger.figures()[1] == 0:
                _past.setdefault(key, _core.Ledger()).absorb(ledger, past=True)
                _left.remove(entry)
                counted.pop(id(ledger), None)
        sums: dict[_Key, _core.Ledger] = {}
        for key, ledger in [*_past.items(), *counted.values()]:
            sums.setdefault(key, _core.Ledger()).absorb(ledger)
    for (function, mode), ledger in sums.items():
        if ledger.figures()[0] > 0:
            yield function, mode, ledger
