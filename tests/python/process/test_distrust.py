"""Bytes that were changed on the way: a value or a clean error, and nothing that lasts."""

import asyncio
import contextlib
import random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import corrupting_worker
import functions
from helpers import HANG
from recovering import fresh_pool  # noqa: F401
from velo import _core
from velo.errors import RingCorrupted, StreamClosed, WorkerDied

pytestmark = pytest.mark.slow

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.timedeltas(),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=8), inner, max_size=6)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=6)
    ),
    max_leaves=20,
)

changes = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "double"]),
        st.integers(0, 1 << 16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=8,
)


def changed(payload, changes):
    """The bytes after some changes."""
    data = bytearray(payload)
    for what, at, byte in changes:
        at %= len(data) + 1
        if what == "set" and at < len(data):
            data[at] = byte
        elif what == "insert":
            data.insert(at, byte)
        elif what == "delete":
            del data[at : at + 1 + byte % 4]
        elif what == "cut":
            del data[at:]
        elif what == "double":
            data[at:at] = data[at : at + byte]
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plain, changes)
def test_an_encoding_that_was_changed(value, how):
    payload = changed(_core.dumps(value), how)
    # What is pickled belongs to the same user, and may do what it likes.
    assume(b"\xc1\x05" not in payload and b"\xc1\x04" not in payload)
    try:
        value = _core.loads(payload)
    except (RingCorrupted, MemoryError):
        return
    again = _core.loads(_core.dumps(value))
    assert type(again) is type(value)
    assert len(_core.dumps(again)) == len(_core.dumps(value))


@pytest.mark.parametrize("aim", ["control_bytes", "control", "indices", "lengths", "residents"])
async def test_a_client_that_writes_over_its_link(aim, long):
    """It gets errors or results, soon; its worker may have to be replaced."""
    echo = functions.echo.options(mode="process", workers=1, buffer=8)
    for seed in range(30 if long else 3):
        rng = random.Random(f"{aim} {seed}")
        with contextlib.suppress(RingCorrupted, WorkerDied, StreamClosed):
            async with asyncio.timeout(HANG), echo.open() as stream:
                await stream.send(1)
                assert await stream.recv() == 1
                memory = corrupting_worker.Links()
                for number in range(30):
                    if number % 10 == 3:
                        corrupting_worker.TARGETS[aim](memory, rng)
                    await stream.send(number)
                    await stream.recv()
        async with asyncio.timeout(HANG):
            while True:
                with contextlib.suppress(RingCorrupted, WorkerDied, StreamClosed):
                    assert await echo.run([1, 2, 3]) == [1, 2, 3]
                    break
