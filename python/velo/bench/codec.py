"""Times of encoding and decoding. Returns figures by name."""

from __future__ import annotations

import importlib
import pickle
import timeit
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from velo import _core
from velo.bench.floors import Measured, frame_of
from velo.bench.functions import EVENTS

__all__ = ["LIBRARIES", "VALUES", "codec"]

# The best repeat counts: other processes can only make one slower.
REPEATS = 5

VALUES: dict[str, Callable[[], Any]] = {
    "64 bytes": lambda: EVENTS["64 bytes"](7),
    "a four-field dict": lambda: EVENTS["a four-field dict"](7),
    "a nested value": lambda: {
        "id": "order-7",
        "when": 1_700_000_000.25,
        "tags": ["new", "paid", "gift"],
        "lines": [{"item": f"item-{n}", "price": n + 0.25, "count": n} for n in range(10)],
        "address": {"street": "Long Road 7", "city": "Köln", "floor": None},
    },
    "a 900 KB array": lambda: frame_of([480, 640, 3]),
    "an object that is pickled": lambda: Fraction(1, 3),
}
"""Makes a value, by the name of its kind."""


def _velo() -> tuple[Any, Any]:
    return _core.dumps, _core.loads


def _pickle() -> tuple[Any, Any]:
    return lambda value: pickle.dumps(value, pickle.HIGHEST_PROTOCOL), pickle.loads


def _packb(module: str) -> tuple[Any, Any]:
    library = importlib.import_module(module)
    return library.packb, library.unpackb


LIBRARIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "velo": _velo,
    "pickle": _pickle,
    "ormsgpack": lambda: _packb("ormsgpack"),
    "msgpack": lambda: _packb("msgpack"),
}
"""The two functions of a library, by its name."""


def codec(library: str, name: str, seconds: float) -> Measured:
    """Encode and decode a value, for about that many seconds."""
    dumps, loads = LIBRARIES[library]()
    value = VALUES[name]()
    payload = dumps(value)
    return {
        "encode": _nanoseconds(lambda: dumps(value), seconds),
        "decode": _nanoseconds(lambda: loads(payload), seconds),
    }


def _nanoseconds(call: Callable[[], Any], seconds: float) -> float:
    timer = timeit.Timer(call)
    number, took = timer.autorange()
    number = max(int(number * seconds / REPEATS / took), 1)
    return min(timer.repeat(REPEATS, number)) / number * 1e9
