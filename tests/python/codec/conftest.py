"""What the codec's tests share: going there and back, and comparing without mercy."""

import struct

import pytest

from velo._core import dumps, loads


def bits(number):
    return struct.pack("<d", number)


def same(one, other):
    """Same value and exact same type, all the way down; floats to the bit, dicts in order."""
    if type(one) is not type(other):
        return False
    kind = type(one)
    if kind is float:
        return bits(one) == bits(other)
    if kind is complex:
        return bits(one.real) == bits(other.real) and bits(one.imag) == bits(other.imag)
    if kind in (list, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if kind is dict:
        return same(list(one.items()), list(other.items()))
    if kind in (set, frozenset):
        found = {member: member for member in other}
        return one == other and all(same(member, found[member]) for member in one)
    return one == other


@pytest.fixture(scope="session", name="same")
def same_fixture():
    return same


@pytest.fixture(scope="session")
def check():
    """Sends a value there and back, demands the same, and returns what came."""

    def check(value):
        payload = dumps(value)
        received = loads(payload)
        assert same(value, received), f"{value!r} came back as {received!r}"
        # Written into memory of a fixed size, only padding may differ.
        assert same(value, loads(dumps(value, len(payload) + 64)))
        return received

    return check
