"""Bytes from a broken writer: always one clear error, never anything else."""

import contextlib
import datetime as dt
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from velo._core import dumps, loads
from velo.errors import RingCorrupted

VALUES = [
    None, 300, -70_000, 1 << 80, 1.5, 1j, "text", "é" * 40, "\ud800", b"bytes", bytearray(b"b"),
    [1, [2, [3]]], (1, (2,)), {1, 2}, frozenset({3}), {"a": {"b": [1, 2, (3, {4: 5})]}},
    list(range(300)), {str(n): n for n in range(20)},
    dt.date(2024, 1, 1), dt.time(1, 2, 3), dt.timedelta(1, 2, 3), dt.datetime(2024, 1, 1, fold=1),
    dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
]  # fmt: skip

try:
    import numpy as np
except ImportError:
    pass
else:
    VALUES += [np.arange(6.0).reshape(2, 3), np.float32(1), [np.zeros((0, 3)), np.array("text")]]

# A pickle is believed, and the dtype of an array can be one.
TRUSTED = (b"\xc1\x05", b"\xc1\x04\x01", b"\xc1\x04\x03")


def attempt(payload):
    if any(trusted in payload for trusted in TRUSTED):
        return
    with contextlib.suppress(RingCorrupted):
        loads(payload)


@settings(max_examples=400)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xdb\xff\xff\xff\xff")
@example(b"\xc9\xff\xff\xff\xff\x01")
@example(b"\xc1\x04\x00\x02\x00\x00\x00<f8\x01" + b"\xff" * 17)
def test_random_bytes(payload):
    attempt(payload)


HEADS = b"\x81\x91\xa1\xc1\xc4\xc7\xc8\xcb\xd3\xd9\xdc\xdd\xde\xdf\x01\x02\x03\x04\x06\x07\x08\x09"


# The packed columns of a file of CSV: a comma, numbers, two names, the second of which is a text's.
COLUMNS = b",\x01\x02\0\0\0\x01\0\0\0a\0\x01\0\0\0b\x01\0\0\0\0"


@settings(max_examples=400)
@given(st.binary(max_size=60) | st.just(b"") | st.just(COLUMNS), st.binary(max_size=60))
@example(b"", b"")
@example(b"", b"{")
@example(b"", b'{"a": 1}')
@example(COLUMNS, b"1,x\n")
@example(COLUMNS, b"1,\xff\n")
def test_random_lines(columns, text):
    parts = (struct.pack("<I", len(part)) + part for part in (columns, text))
    attempt(b"\xc1\x07" + b"".join(parts))


@settings(max_examples=400)
@given(st.lists(st.sampled_from(HEADS), max_size=60).map(bytes))
def test_random_heads(payload):
    attempt(payload)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_truncation(value):
    payload = dumps(value)
    for end in range(len(payload)):
        with pytest.raises(RingCorrupted):
            loads(payload[:end])
    for tail in (b"\0", b"\xc0", payload):
        with pytest.raises(RingCorrupted, match="more bytes than the value has"):
            loads(payload + tail)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_byte_changed(value):
    payload = dumps(value)
    for at in range(min(len(payload), 150)):
        for byte in (0x00, 0x01, 0x7F, 0x80, 0xC1, 0xDD, 0xFF, payload[at] ^ 1, payload[at] ^ 0x80):
            attempt(payload[:at] + bytes([byte]) + payload[at + 1 :])


@settings(max_examples=200)
@given(st.sampled_from(VALUES), st.data())
def test_several_bytes_changed(value, data):
    payload = bytearray(dumps(value))
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    attempt(bytes(payload))


@pytest.mark.parametrize("head", [b"\x91", b"\xc1\x01\x91", b"\x81\x01", b"\xc1\x02\x91"])
def test_depth_has_a_bound(head):
    for depth in (65, 1_000, 100_000):
        with pytest.raises(RingCorrupted, match="nested too deeply"):
            loads(head * depth + b"\xc0")


def test_claimed_items_cost_nothing():
    # Each level claims as many items as bytes follow: together they would take a terabyte.
    length = 2_000_000
    level = b"\xdd" + struct.pack(">I", length - 500)
    payload = level * 60
    with pytest.raises(RingCorrupted, match="more items than bytes"):
        loads(payload + b"\xc0" * (length - len(payload)))


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b"\xa2\xff\xff", "not UTF-8"),
        (b"\xa2\xc0\x80", "not UTF-8"),
        (b"\x81\x90\x01", "a key"),
        (b"\xc1\x02\x91\x80", "a set member"),
        (b"\x81\xc1\x01\x91\x90\x01", "a key"),
        (b"\xc1\x02\xc0", "without items"),
        (b"\xc1\x63", "unknown kind"),
        (b"\xc7\x00\x63", "unknown extension"),
        (b"\xca\x00\x00\x00", "at byte"),
        (b"\xc7\x04\x05\x00\x00\x01\x01", "does not exist"),
        (b"\xc7\x03\x02abc", "wrong length"),
        (b"\xc7\x04\x09\x07<f8", "dtype"),
        (b"\xc7\x0b\x09\x02|O" + b"\0" * 8, "dtype"),
    ],
)
def test_messages(payload, what):
    with pytest.raises(RingCorrupted, match=what):
        loads(payload)


def array(dtype, *shape, data=b"", flags=0):
    head = struct.pack("<BBBI", 0xC1, 4, flags, len(dtype)) + dtype + bytes([len(shape)])
    shape = b"".join(struct.pack("<Q", length) for length in shape)
    return head + shape + struct.pack("<QB", len(data), 0) + data


@pytest.mark.parametrize(
    "payload",
    [
        array(b"|O", 1, data=bytes(8)),
        array(b"O,i4", 1, data=bytes(12)),
        array(b"(2,)f8", 1, data=bytes(16)),
        array(b"object", 1, data=bytes(8)),
        array(b"T", 1, data=bytes(16)),
        array(b"<U0", 1),
        array(b"<f8", 2, data=bytes(8)),
        array(b"<f8", 1 << 61, 8, data=bytes(8)),
        array(b"<f8", 1 << 63, data=b""),
        array(b"<f8", 0, 1 << 63),
        array(b"<f8", *[1] * 65, data=bytes(8)),
        array(b"<f8", 1, data=bytes(8), flags=4),
        array(b"nonsense", 1, data=bytes(8)),
        array(b"\xff\xff", 1, data=bytes(8)),
        array(b"", 1, data=bytes(8)),
    ],
)
def test_arrays_that_must_not_be(payload):
    pytest.importorskip("numpy")
    with pytest.raises(RingCorrupted):
        loads(payload)
