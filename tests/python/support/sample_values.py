"""Types whose values travel, and an equality that asks for the same type and bits."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic


class Whole(int):
    pass


class Text(str):
    pass


class Items(list):
    def __init__(self, items, label):
        super().__init__(items)
        self.label = label


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Plain:
    name: str
    values: list


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: tuple


class Order(pydantic.BaseModel):
    number: int
    lines: dict[str, float]


class Tick(msgspec.Struct):
    price: float
    tags: list[str]


class Note(Exception):
    def __init__(self, code, what):
        super().__init__(code, what)
        self.code = code
        self.what = what


def same(one, other):
    """Value and exact type; NaN is like NaN, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one.hex() == other.hex()
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, np.ma.MaskedArray):
        return same(one.data, other.data) and same(one.mask, other.mask)
    if isinstance(one, np.ndarray):
        kept = one.dtype == other.dtype and one.shape == other.shape
        if one.dtype.hasobject:
            return kept and same(one.tolist(), other.tolist())
        return kept and one.tobytes() == other.tobytes()
    if isinstance(one, np.generic):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, decimal.Decimal):
        return repr(one) == repr(other)
    if isinstance(one, dt.datetime | dt.time):
        return repr(one) == repr(other)
    if isinstance(one, pd.DataFrame | pd.Series):
        return one.equals(other) and list(one.index) == list(other.index)
    if isinstance(one, pl.DataFrame | pl.Series):
        return one.equals(other, null_equal=True)
    if isinstance(one, pa.Table):
        return one.equals(other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(k, ok) and same(v, ov)
            for (k, v), (ok, ov) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, list | tuple | collections.deque):
        if not same(getattr(one, "__dict__", None), getattr(other, "__dict__", None)):
            return False
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return one == other and canonical(one) == canonical(other)
    if isinstance(one, Exception):
        return one.args == other.args and vars(one) == vars(other)
    if type(one) is Plain:
        return same(vars(one), vars(other))
    return one == other


def canonical(value):
    """Members that are equal may be of different types, and a set has no order."""
    if isinstance(value, set | frozenset):
        return f"{type(value)} {sorted(map(canonical, value))}"
    if isinstance(value, tuple):
        return f"tuple {list(map(canonical, value))}"
    return f"{type(value)} {value!r}"
