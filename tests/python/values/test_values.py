"""Values that go through a stream and back: the same value, of the same type, in both modes."""

import array
import collections
import dataclasses
import datetime as dt
import decimal
import fractions
import ipaddress
import math
import pathlib
import re
import types
import uuid
import zoneinfo

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import functions
from sample_values import (
    Access,
    Color,
    Frozen,
    Items,
    Level,
    Note,
    Order,
    Plain,
    Point,
    Text,
    Tick,
    Whole,
    same,
)
from velo import stream_fn

pytestmark = pytest.mark.every_backend


HARD = {
    "int subclass": Whole(7),
    "str subclass": Text("seven"),
    "list subclass with attributes": Items([1, 2], "label"),
    "bool and int keys": {1: "int", "True": True, (True,): 1},
    "bool key": {True: "bool"},
    "float key": {1.0: "float"},
    "minus zero": [-0.0, 0.0, complex(-0.0, 0.0)],
    "nan": [math.nan, -math.nan, math.inf, -math.inf],
    "surrogates": "\ud800 and \udfff",
    "surrogates in a key": {"\udc80": 1},
    "nul and emoji": "a\0b \U0001f600",
    "int at the edges": [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64],
    "huge int": 10**100_000 + 7,
    "negative huge int": -(3**10_000),
    "tuple keys": {(1, "a", (None,)): [()], (): {}},
    "frozenset key": {frozenset({1, 2}): 1},
    "none and bytes keys": {None: 0, b"": 1},
    "empty containers": [[], (), {}, set(), frozenset(), "", b"", bytearray()],
    "sets": [{1, "a", None, (2, 3)}, frozenset({frozenset()})],
    "bytes": [bytes(range(256)), bytearray(b"\x01\x02"), b"\x01" * 70_000],
    "array.array": array.array("d", [1.5, -2.5]),
    "range and slice": [range(3, 100, 7), slice(1, None, 2)],
    "singletons": [None, True, False, Ellipsis, NotImplemented],
    "complex": 1.5 - 2j,
    "dataclass": Plain("a", [1, {"b": Frozen(1, (2,))}]),
    "frozen dataclass with slots": Frozen(1, (2, [3])),
    "enums": [Color.RED, Color.BLUE, Level.LOW, Access.READ | Access.WRITE],
    "namedtuple": Point(1, [2]),
    "ordered and default dicts": [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter("hello"),
    ],
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "pydantic": Order(number=1, lines={"a": 2.5}),
    "msgspec": Tick(price=1.25, tags=["x"]),
    "date and time": [
        dt.date(2024, 2, 29),
        dt.time(23, 59, 59, 999_999, fold=1),
        dt.timedelta(days=-1, microseconds=1),
        dt.datetime(1, 1, 1),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999),
    ],
    "zones": [
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5, seconds=1), "odd")),
        dt.time(1, 2, tzinfo=dt.UTC),
    ],
    "decimal": [decimal.Decimal(text) for text in ("1.10", "NaN", "-0", "Infinity", "1E+999")],
    "fraction": fractions.Fraction(22, 7),
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "path": [pathlib.Path("/tmp/x"), pathlib.PurePosixPath("y")],
    "address": ipaddress.ip_network("10.0.0.0/8"),
    "pattern": re.compile(r"a(b)c", re.IGNORECASE),
    "namespace": types.SimpleNamespace(a=1),
    "exception": Note(3, "what"),
    "class and function": [int, Color, len, dt.datetime, dataclasses.field],
    "numpy scalars": [
        np.float32(1.5),
        np.int8(-1),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.complex64(1j),
        np.float64("nan"),
        np.datetime64("2024-01-01"),
        np.timedelta64(5, "ms"),
        np.str_("text"),
        np.bytes_(b"bytes"),
    ],
    "zero-dimensional": np.array(3.5),
    "zero-size": np.zeros((0, 3), dtype=np.int16),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "strided": np.arange(100).reshape(10, 10)[::2, ::-3],
    "structured": np.array([(1, 2.5, b"ab")], dtype=[("a", "i4"), ("b", "f8"), ("c", "S3")]),
    "dates": np.array(["2024-01-01", "NaT"], dtype="datetime64[ns]"),
    "texts": np.array(["a", "bcd"]),
    "objects": np.array([1, "a", None, [2]], dtype=object),
    "swapped": np.arange(5, dtype=">i4"),
    "half and long": [np.ones(3, np.float16), np.ones(3, np.longdouble)],
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    "record array": np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "large array": np.arange(100_000, dtype=np.float32).reshape(100, 1000),
    "arrays in containers": {"a": [np.arange(3), (np.zeros(30_000),)]},
    "pandas": [
        pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=["r", "s"]),
        pd.Series(np.arange(50_000.0)),
        pd.DataFrame({"t": pd.to_datetime(["2024-01-01", None])}),
    ],
    "polars": pl.DataFrame({"a": [1, None], "b": ["x", "y"]}),
    "pyarrow": pa.table({"a": pa.array([1, None, 3]), "b": ["x", "y", "z"]}),
}


@pytest.mark.parametrize("name", HARD)
async def test_a_value_stays_what_it_is(mode, name):
    (result,) = await functions.echo.options(mode=mode).run([HARD[name]])
    assert same(HARD[name], result)


async def test_what_refers_to_itself(mode):
    loop = [1]
    loop.append(loop)
    knot = {"self": None}
    knot["self"] = knot
    one, other = await functions.echo.options(mode=mode).run([loop, knot])
    assert one[0] == 1
    assert one[1] is one
    assert other["self"] is other


async def test_what_is_shared_stays_shared(mode):
    part = [1, 2]
    text = {"a": part, "b": [part, (part,)]}
    (result,) = await functions.echo.options(mode=mode).run([text])
    assert result["a"] is result["b"][0] is result["b"][1][0]


async def test_what_is_nested_beyond_measure(mode):
    """It goes, or it says so at `send`; the stream goes on either way."""

    def nested(depth):
        value = []
        for _ in range(depth):
            value = [value]
        return value

    def depth_of(value):
        depth = 0
        while value:
            (value,) = value
            depth += 1
        return depth

    async with functions.echo.options(mode=mode).open() as stream:
        await stream.send(nested(200))
        assert depth_of(await stream.recv()) == 200
        if mode == "process":
            with pytest.raises(RecursionError, match="nested"):
                await stream.send(nested(100_000))
        await stream.send("on")
        assert await stream.recv() == "on"


DTYPES = [
    np.dtype(name)
    for name in ("?", "i1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8", "<c8", "<M8[s]", "<m8[D]")
    + ("S3", "<U2", ">U1")
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),
    st.binary(max_size=40),
    st.binary(max_size=10).map(bytearray),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.sampled_from(Color),
    st.sampled_from(Access),
    st.integers().map(Whole),
    hnp.arrays(
        st.sampled_from(DTYPES),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    ),
    st.sampled_from(DTYPES).flatmap(hnp.from_dtype),
)

KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)

VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
        st.tuples(inner, inner).map(lambda pair: Point(*pair)),
        st.lists(inner, max_size=3).map(lambda items: Plain("p", items)),
        st.lists(inner, max_size=3).map(lambda items: Items(items, "label")),
    ),
    max_leaves=12,
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_any_value_stays_what_it_is(mode, long):
    echo = functions.echo.options(mode=mode)

    @settings(
        max_examples=20_000 if long else 300,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(VALUES)
    def check(value):
        (result,) = echo.run_sync([value])
        assert same(value, result)

    check()


@stream_fn
async def mixed(events):
    """Small and large arrays, views in containers, buffers in pickles."""
    async for size in events:
        frame = np.zeros(size, np.uint8)
        yield {"frame": frame, "series": pd.Series(np.zeros(size)), "raw": bytearray(size)}


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("batch", [False, True])
async def test_a_private_copy_may_be_written_to(mode, size, batch):
    async with mixed.options(mode=mode).open() as stream:
        await stream.send(size)
        if batch:
            (result,) = await stream.recv_batch(copy=True)
        else:
            result = await stream.recv(copy=True)
        result["frame"][0] = 7
        result["series"].iloc[0] = 7.0
        result["raw"][0] = 7
        assert (result["frame"][0], result["series"][0], result["raw"][0]) == (7, 7.0, 7)
        await stream.send(size)
        again = await stream.recv()
        assert (again["frame"][0], again["series"][0], again["raw"][0]) == (0, 0.0, 0)


async def test_a_private_copy_is_nobody_elses():
    """In inline mode a result is the function's own object."""
    kept = []

    @stream_fn
    async def keeps(events):
        async for event in events:
            kept.append(np.zeros(3))
            yield [kept[-1]]

    async with keeps.open() as stream:
        await stream.send_batch([1, 2])
        assert (await stream.recv())[0] is kept[0]
        (private,) = await stream.recv(copy=True)
        private[:] = 5
        assert kept[1].sum() == 0
