"""Finding a pickle in an encoded value, without running it."""

import collections
import pickle
from decimal import Decimal

import numpy as np
import pytest

from velo._core import dumps, pickle_in

PLAIN = [
    None,
    -1,
    2**70,
    1.5,
    1j,
    "text",
    "\ud800",
    b"x" * 300,
    bytearray(b"abc"),
    [1, [2, ["three"]]],
    list(range(70_000)),
    {n: str(n) for n in range(100)},
    ({"a": {1, 2}}, frozenset({3})),
    np.float32(1.5),
    [np.zeros((2, 0)), "between", np.arange(6).reshape(2, 3)],
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: repr(v)[:30])
def test_there_is_none_in_plain_values(value):
    assert pickle_in(dumps(value)) is None
    assert pickle_in(dumps({"among": [value, "others"]})) is None


def test_a_narrow_float_is_plain():
    assert pickle_in(b"\xca\x3f\xc0\x00\x00") is None


@pytest.mark.parametrize(
    "value", [Decimal("1.5"), collections.Counter("aab"), np.array([None, 1])], ids=type
)
def test_it_is_found_wherever_it_is(value):
    for holder in (value, [1, value], {"a": ("b", {"c": value})}):
        found = pickle_in(dumps(holder))
        assert type(found) is bytes
        assert found.startswith(b"\x80\x05")


def test_what_is_nested_deeply_is_one():
    value = []
    for _ in range(100):
        value = [value]
    assert pickle.loads(pickle_in(dumps(value))) == value


def test_a_pickled_dtype_is_one():
    array = np.zeros(2, [("a", "f4"), ("b", "i8")])
    assert b"dtype" in pickle_in(dumps([1, array]))


@pytest.mark.parametrize("value", [v for v in PLAIN if v not in (None, -1)][:9], ids=repr)
def test_what_breaks_off_is_no_value(value):
    with pytest.raises(ValueError, match="not an encoded value"):
        pickle_in(dumps([value])[:-1])
    with pytest.raises(ValueError, match="not an encoded value"):
        pickle_in(dumps([value]) + b"\x01")
