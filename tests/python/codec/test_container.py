"""`list`, `dict`, `tuple`, `set`, `frozenset`."""

import collections
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velo._core import dumps, loads

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.fractions(),
)
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6
)
VALUES = st.recursive(
    HASHABLE | st.builds(bytearray, st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(HASHABLE, inner, max_size=5),
        st.tuples(inner, inner),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_nesting(check, value):
    check(value)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65_535, 65_536, 70_000])
def test_every_size(check, size):
    check(list(range(size)))
    check(tuple(range(size)))
    check(set(range(size)))
    check(frozenset(range(size)))
    check(dict.fromkeys(range(size)))


def test_dicts_keep_their_order(check):
    assert list(check({"z": 1, "a": 2, "m": 3})) == ["z", "a", "m"]


@pytest.mark.parametrize(
    "key",
    [
        (1, "a"),
        (),
        frozenset({1}),
        None,
        True,
        1.5,
        -0.0,
        b"k",
        "",
        "k" * 31,
        "k" * 32,
        1j,
        1 << 70,
    ],
)
def test_any_key(check, key):
    check({key: "value", "other": key})


def test_nan_in_containers():
    assert math.isnan(loads(dumps({math.nan: 1})).popitem()[0])
    assert math.isnan(loads(dumps({math.nan})).pop())


Point = collections.namedtuple("Point", "x y")


class Rows(list):
    pass


class Table(dict):
    pass


class Bag(set):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Point(1, [2]),
        Rows([1, 2]),
        Table(a=1),
        Bag({1}),
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        collections.deque([1, 2], maxlen=5),
        collections.ChainMap({"a": 1}),
    ],
)
def test_subclasses_and_relatives(check, value):
    check(value)
    check({"it": value, "plain": [1, (2,)]})


def test_a_container_with_a_pickled_leaf_stays_native():
    payload = dumps({"key": Point(1, 2), "other": [1, 2, 3]})
    assert payload.startswith(b"\x82\xa3key")
    assert payload.endswith(b"\xa5other\x93\x01\x02\x03")


class Meddler:
    """Changes a container while it is being sent."""

    def __init__(self, change):
        self.change = change

    def __reduce__(self):
        self.change()
        return Meddler, (None,)


@pytest.mark.parametrize("make", [list, dict, set])
def test_a_container_that_changes_while_it_is_sent(make):
    container = make()
    if make is dict:
        meddler = Meddler(lambda: container.update(dict.fromkeys(range(500), 0)))
        container.update({"first": meddler, "second": [1]})
    else:
        add = container.append if make is list else container.add
        meddler = Meddler(lambda: [add(number) for number in range(500)])
        for item in (meddler, "second", 3):
            add(item)
    with pytest.raises(RuntimeError, match="chang"):
        dumps(container)


def test_a_container_that_is_emptied_while_it_is_sent():
    items = [[number] for number in range(100)]
    items.insert(1, Meddler(items.clear))
    with pytest.raises(RuntimeError, match="chang"):
        dumps(items)
    entries = {number: [number] for number in range(100)}
    entries[0] = Meddler(entries.clear)
    with pytest.raises(RuntimeError, match="chang"):
        dumps(entries)
