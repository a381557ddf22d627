"""`None`, `bool`, `int`, `float`, `complex`."""

import enum
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo._core import dumps, loads

EDGES = sorted(
    sign * (1 << power) + step
    for power in (5, 7, 8, 15, 16, 31, 32, 62, 63, 64, 65, 127, 128)
    for sign in (1, -1)
    for step in (-1, 0, 1)
)


@pytest.mark.parametrize("value", [None, True, False, *range(-40, 140), *EDGES])
def test_constants_and_edges(check, value):
    check(value)


@pytest.mark.parametrize("digits", [20, 100, 1_000, 50_000])
def test_huge_ints(check, digits):
    check(1 << digits)
    check(-(1 << digits))
    check((1 << digits) - 1)


@given(st.integers())
def test_any_int(check, value):
    check(value)


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308])
def test_special_floats(check, value):
    check(value)
    check(complex(value, -0.0))
    check(complex(-0.0, value))


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_floats_keep_every_bit(pattern):
    value = struct.unpack("<d", struct.pack("<Q", pattern))[0]
    assert struct.pack("<d", loads(dumps([value]))[0]) == struct.pack("<d", value)


@given(st.floats(), st.complex_numbers())
def test_any_float(check, number, pair):
    check(number)
    check(pair)


class Celsius(float):
    pass


class Count(int):
    pass


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@pytest.mark.parametrize("value", [Count(7), Celsius(-0.0), Level.HIGH])
def test_subclasses_are_not_their_base(check, value):
    assert type(check(value)) is type(value)
    check([value, 1])
    check({"a": value})


def test_bool_is_not_int(check):
    check([True, 1, False, 0, 1.0])
    check({True: 1, 2: False})


def test_small_values_take_little_room():
    assert [len(dumps(value)) for value in (None, True, 5, -5, 300, 1.5)] == [1, 1, 1, 1, 3, 9]
