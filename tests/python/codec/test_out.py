"""Memory of a fixed size: what does not fit says so, whatever it was doing."""

import decimal

import pytest

from velo._core import dumps, loads
from velo.errors import VeloError

VALUES = [
    1 << 100,
    1.5,
    "text" * 20,
    "\ud800",
    b"bytes" * 100,
    bytearray(b"array"),
    {"a": [1, (2, {3}), frozenset({4})], "b": None},
    decimal.Decimal("1.5"),
    {"d": decimal.Decimal("1.5"), "after": 1},
]


@pytest.mark.parametrize("value", VALUES)
def test_every_size_that_is_too_small(value):
    payload = dumps(value)
    for limit in range(len(payload)):
        with pytest.raises(VeloError, match=r"needs at least `\d+` bytes"):
            dumps(value, limit)
    assert dumps(value, len(payload)) == payload
    assert loads(payload) == value


def test_the_error_tells_a_size_that_helps():
    data = b"x" * 100_000
    with pytest.raises(VeloError, match="`100005`"):
        dumps(data, 10)
