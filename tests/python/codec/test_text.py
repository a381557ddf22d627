"""`str`, `bytes`, `bytearray`."""

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo._core import dumps, loads

LENGTHS = [0, 1, 31, 32, 255, 256, 4095, 4096, 65_535, 65_536, 1_000_000]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(check, length):
    check("x" * length)
    check("é" * length)
    check("\U0001f680" * length)
    check(b"\x00" * length)
    check(bytearray(b"\xff") * length)
    check(["x" * length, b"y" * length, bytearray(b"z" * length)])


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text(check, text):
    check(text)
    check({text: text})


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc80" * 300, "\ud83d\ude80"])
def test_surrogates(check, text):
    check(text)
    check({text: [text]})


def test_nul_is_text_like_any_other(check):
    check("\0")
    check("a\0b")


@given(st.binary())
def test_any_bytes(check, data):
    check(data)
    check(bytearray(data))


def test_a_bytearray_is_a_new_one():
    sent = bytearray(b"abc")
    received = loads(dumps(sent))
    received[0] = 0
    assert sent == b"abc"


class Name(str):
    __slots__ = ()


class Colour(enum.StrEnum):
    RED = "red"


class Blob(bytes):
    pass


class Buffer(bytearray):
    pass


@pytest.mark.parametrize("value", [Name("n"), Colour.RED, Blob(b"b"), Buffer(b"c")])
def test_subclasses_are_not_their_base(check, value):
    check(value)
    check((value, "plain"))


def test_text_takes_its_length_and_a_head():
    assert len(dumps("x" * 31)) == 32
    assert len(dumps("x" * 200)) == 202
    assert len(dumps(b"x" * 200)) == 202
