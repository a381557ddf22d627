"""Everything that goes by pickle or cloudpickle."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import ipaddress
import operator
import pathlib
import pickle
import re
import subprocess
import sys
import types
import uuid

import pytest

from velo._core import dumps, loads


class Colour(enum.Enum):
    RED = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Order:
    number: int
    lines: list


@dataclasses.dataclass(frozen=True, slots=True)
class Price:
    amount: decimal.Decimal


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a

    def __eq__(self, other):
        return self.a == other.a and not hasattr(other, "b")


Point = collections.namedtuple("Point", "x y")


def double(number):
    return number * 2


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Mode.READ | Mode.WRITE,
        Order(1, [2, (3,)]),
        Price(decimal.Decimal("1.10")),
        Slotted([1]),
        Point(1, [2]),
        decimal.Decimal("-0.00"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        pathlib.PurePosixPath("/a/b"),
        pathlib.Path("c"),
        ipaddress.ip_address("10.0.0.1"),
        re.compile("a+", re.I),
        range(1, 10, 2),
        slice(1, None, 2),
        Ellipsis,
        NotImplemented,
        dt.UTC,
        types.SimpleNamespace(a=[1]),
        types.MappingProxyType,
        int,
        len,
        double,
        Order,
        operator.itemgetter,
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),  # the same in every process
)
def test_values(check, value):
    check(value)
    check([value, 1])
    check({"a": value, "b": value, "c": [value]})


def test_exceptions():
    received = loads(dumps(ValueError("bad", 1)))
    assert type(received) is ValueError
    assert received.args == ("bad", 1)


def test_functions_by_value():
    offset = 10
    assert loads(dumps(lambda number: number + offset))(1) == 11
    assert loads(dumps({"f": functools.partial(lambda a, b: a - b, 5)}))["f"](2) == 3

    class Local:
        def __init__(self, it):
            self.it = it

    received = loads(dumps([Local([1])]))[0]
    assert type(received) is Local
    assert received.it == [1]


MAIN = """
import enum, sys
from velo._core import dumps

class Shape(enum.Enum):
    ROUND = 1

class Thing:
    def __init__(self, it):
        self.it = it
    def twice(self):
        return helper(self.it)

def helper(it):
    return it * 2

sys.stdout.buffer.write(dumps({"thing": Thing(21), "list": [1]} if sys.argv[1] == "one"
                              else [Thing(21), Shape.ROUND, helper]))
"""


@pytest.mark.parametrize("many", ["one", "many"])
def test_what_main_defines_arrives_elsewhere(many):
    pytest.importorskip("cloudpickle")
    script = [sys.executable, "-c", MAIN, many]
    received = loads(subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout)
    if many == "one":
        assert received["thing"].twice() == 42
        assert received["list"] == [1]
    else:
        thing, shape, helper = received
        assert thing.twice() == helper(21) == 42
        assert shape.name == "ROUND"


class Frame:
    """Hands its memory over out of band."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Frame, (pickle.PickleBuffer(self.data),)


@pytest.mark.parametrize("size", [0, 1, 1000, 1_000_000])
def test_out_of_band_buffers(size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for value in (Frame(data), [Frame(bytearray(data)), 1], [Frame(data), Frame(data)]):
        received = loads(dumps(value))
        sent, frame = (v if isinstance(v, Frame) else v[0] for v in (value, received))
        assert bytes(frame.data) == data
        assert memoryview(frame.data).readonly == isinstance(sent.data, bytes)


class Missing:
    def __reduce__(self):
        return __import__, ("no_such_module_here",)


def test_what_unpickling_raises_is_raised():
    payload = dumps({"m": Missing()})
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        loads(payload)


class Stubborn:
    def __hash__(self):
        raise LookupError("no hash today")


def test_an_error_of_an_unpickled_key_is_not_called_corruption():
    with pytest.raises(LookupError, match="no hash"):
        loads(b"\x81" + dumps(Stubborn()) + b"\x01")


def test_pydantic(check):
    pydantic = pytest.importorskip("pydantic")
    Model = pydantic.create_model(
        "Model", __module__=__name__, user=(str, ...), tags=(list[int], [])
    )
    globals()["Model"] = Model
    check(Model(user="u", tags=[1]))
    check({"model": Model(user="u")})


def test_msgspec(check):
    msgspec = pytest.importorskip("msgspec")
    Item = msgspec.defstruct("Item", [("name", str), ("price", float)], module=__name__)
    globals()["Item"] = Item
    check(Item("a", -0.0))
    check([Item("a", 1.0), Item("b", 2.0)])


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "number": range(5_000),
            "text": [f"row {n}" for n in range(5_000)],
            "at": pandas.date_range("2024-01-01", periods=5_000, tz="UTC"),
            "kind": pandas.Categorical(["a", "b"] * 2_500),
        }
    )
    received = loads(dumps({"frame": frame, "n": 1}))["frame"]
    pandas.testing.assert_frame_equal(received, frame)
    pandas.testing.assert_series_equal(loads(dumps(frame["number"])), frame["number"])
    stamp = pandas.Timestamp("2024-01-01T00:00:00.000000001", tz="UTC")
    assert type(loads(dumps([stamp]))[0]) is pandas.Timestamp
    assert loads(dumps([stamp]))[0] == stamp


def test_polars():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": range(1_000), "b": ["text"] * 1_000})
    assert loads(dumps({"frame": frame}))["frame"].equals(frame)


def test_pyarrow():
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": list(range(100_000)), "b": ["text"] * 100_000})
    assert loads(dumps([table]))[0].equals(table)
