"""What tells results apart that come again from another worker."""

import datetime
import decimal

import numpy as np
import pytest

from velo._core import dumps, fingerprint

VALUES = [
    None,
    True,
    0,
    -1,
    127,
    128,
    -33,
    2**16,
    2**40,
    -(2**40),
    2**100,
    1.5,
    1j,
    "",
    "short",
    "x" * 40,
    "x" * 300,
    "x" * 70_000,
    "\ud800",
    b"",
    b"x" * 300,
    bytearray(b"abc"),
    [],
    [1, [2, ["three"]]],
    list(range(20)),
    list(range(70_000)),
    (),
    (1, ("a", None)),
    {},
    {"a": 1, "b": [2]},
    {n: str(n) for n in range(100)},
    datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    datetime.timedelta(1, 2, 3),
    np.float32(1.5),
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.zeros(0),
    [np.zeros(3), "between", np.ones(5, np.uint8)],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v)[:30])
def test_the_same_value_has_the_same(value):
    made = fingerprint(dumps(value))
    assert made is not None
    assert fingerprint(dumps(value)) == made


def test_different_values_have_different_ones():
    made = {fingerprint(dumps(value)) for value in VALUES}
    assert len(made) == len(VALUES)


def test_where_an_array_lies_makes_no_difference():
    """Its padding is another one; its data is all that counts."""
    array = np.arange(50)
    for before in range(70):
        # The array is aligned in memory that begins elsewhere in every room.
        assert fingerprint(dumps(array, 1000 + before)) == fingerprint(dumps(array))
        value = ["x" * before, array]
        assert fingerprint(dumps(value)) == fingerprint(dumps(value, 2000 + 8 * before))
    assert fingerprint(dumps(array)) != fingerprint(dumps(array + 1))


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset((1, 2)),
        [1, {2}],
        {"a": (1, {2})},
        decimal.Decimal(1),
        np.zeros(2, [("a", "i4"), ("b", "f8")]),
        np.zeros(2, np.longdouble),
        np.longdouble(1),
    ],
    ids=repr,
)
def test_what_is_not_compared(value):
    assert fingerprint(dumps(value)) is None


def test_what_is_no_value():
    whole = dumps([1, "abc", {"a": np.arange(3)}])
    for cut in range(1, len(whole)):
        assert fingerprint(whole[:cut]) is None
    assert fingerprint(whole + b"\x00") is None
    assert fingerprint(b"\xc1\xff") is None
