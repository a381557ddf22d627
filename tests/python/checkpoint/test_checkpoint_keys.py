"""Keys in a checkpoint: those that are equal are one, and the others are told apart."""

import collections
import enum
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo._checkpoint.keys import pack, unpack
from velo.errors import CheckpointError


class Colour(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    LARGE = 3


class Kind(enum.StrEnum):
    CARD = "card"


class Text(str):
    pass


class Loose(str):
    def __eq__(self, other):
        return self.lower() == other.lower()

    def __hash__(self):
        return hash(self.lower())


Point = collections.namedtuple("Point", "x y")
PARIS = timezone(timedelta(hours=2))

SAME = [
    (1, True, 1.0, 1 + 0j, Decimal("1.00"), Fraction(1), np.int8(1), np.float64(1)),
    (0, False, 0.0, -0.0, Decimal("-0")),
    (3, Size.LARGE, 3.0),
    (2**70, float(2**70), Decimal(2**70)),
    (0.5, Decimal("0.5"), Fraction(1, 2), np.float32(0.5), 0.5 + 0j),
    (Decimal("0.1"), Decimal("0.10"), Fraction(1, 10)),
    (float("inf"), Decimal("Infinity")),
    (complex(0.0, 1), complex(-0.0, 1)),
    ("card", Kind.CARD, Text("card"), np.str_("card")),
    (b"card", np.bytes_(b"card")),
    ((1, 2), Point(1.0, 2), (True, 2.0)),
    (frozenset({1, "a", (2,)}), frozenset({(2.0,), "a", True})),
    (
        datetime(2024, 5, 1, 12, tzinfo=UTC),
        datetime(2024, 5, 1, 14, tzinfo=PARIS),
    ),
    (datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, fold=1)),
    (time(1, 2), time(1, 2, fold=1)),
]
APART = [group[0] for group in SAME] + [
    None,
    "1",
    b"1",
    "",
    (),
    (1,),
    ((1,),),
    frozenset(),
    frozenset({()}),
    ("a", "b"),
    ("ab",),
    "\ud800",
    0.1,
    date(2024, 5, 1),
    timedelta(1),
    uuid.UUID(int=7),
    "x" * 300,
]


def _name(key):
    """Name a test: the same in each process, whatever the seed of its hashes."""
    return "frozenset" if isinstance(key, frozenset) else repr(key)


@pytest.mark.parametrize("group", SAME, ids=lambda group: _name(group[0]))
def test_keys_that_are_equal_have_the_same_bytes(group):
    assert len(set(group)) == 1  # to Python
    assert {pack(key) for key in group} == {pack(group[0])}


def test_other_keys_have_other_bytes():
    assert len({pack(key) for key in APART}) == len(APART)


@pytest.mark.parametrize("key", APART, ids=_name)
def test_a_key_comes_back_as_one_that_is_equal(key):
    again = unpack(pack(key))
    assert again == key
    assert hash(again) == hash(key)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.datetimes(datetime(2, 1, 1), timezones=st.sampled_from([None, UTC, PARIS]))
    | st.timedeltas()
    | st.uuids()
)
keys = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5
)


@given(keys, keys)
def test_any_two_keys_are_one_exactly_when_they_are_equal(one, other):
    assert (pack(one) == pack(other)) is (one == other)
    assert unpack(pack(one)) == one


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (float("nan"), "NaN is not equal to itself"),
        (Decimal("nan"), "NaN is not equal to itself"),
        (complex(0, float("nan")), "NaN is not equal to itself"),
        (np.float32("nan"), "a `float32` is equal to no plain value"),
        (("a", float("nan")), "NaN is not equal to itself"),
        (object(), "a `object` is equal to nothing but itself, which no later run has"),
        (Colour.RED, "a `Colour` compares in its own way"),
        (Loose("a"), "a `Loose` compares in its own way"),
        (time(1, tzinfo=UTC), "with a time zone"),
        (datetime(1, 1, 1, tzinfo=PARIS), "beyond the years"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_key_without_a_canonical_form_is_refused_with_the_reason(key, why):
    with pytest.raises(CheckpointError) as raised:
        pack(key)
    assert why in str(raised.value)
    assert "have `key=` give" in str(raised.value)


def test_a_key_that_is_nested_too_deeply_is_refused():
    key = "a"
    for _ in range(40):
        key = (key,)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        pack(key)
