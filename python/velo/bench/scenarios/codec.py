"""Values to bytes and back, compared with other codecs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from velo.bench.codec import LIBRARIES, VALUES
from velo.bench.measure import Plan, Row, Subject, compare

OPTIONAL = ("ormsgpack", "msgpack")
# MessagePack has no type for these.
ARRAY = "a 900 KB array"
ONLY_PICKLE = (ARRAY, "an object that is pickled")


def measure(plan: Plan) -> Iterator[Row]:
    """Measure each kind of value; every Python has `pickle`."""
    libraries = list(LIBRARIES)
    for name in OPTIONAL:
        if plan.peers is not None:
            libraries.remove(name)
        elif importlib.util.find_spec(name) is None:
            plan.warn(f"{name}, which is not installed (pip install 'velo-stream[bench]')")
            libraries.remove(name)
    for value in VALUES:
        if value == ARRAY and importlib.util.find_spec("numpy") is None:
            plan.warn(f"{ARRAY}: NumPy is not installed")
            continue
        subjects = {
            library: Subject("velo.bench.codec:codec", (library, value, plan.seconds / 5))
            for library in libraries
            if library not in OPTIONAL or value not in ONLY_PICKLE
        }
        figures = plan.in_turn(subjects)
        for figure, done in (("encode", "encoded"), ("decode", "decoded")):
            for library in subjects:
                if library != "velo":
                    yield from compare(
                        figures,
                        "velo",
                        library,
                        measurement=f"{value}, {done}",
                        unit="ns",
                        figure=figure,
                    )
