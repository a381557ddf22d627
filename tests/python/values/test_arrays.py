"""NumPy arrays that arrive as views of shared memory: read-only, and safe to keep."""

import gc
import random

import numpy as np
import pytest

import functions
from helpers import HANG, notes
from velo import stream_fn

LARGE = 200_000

echo = functions.echo.options(mode="process")


def frame(number, size=LARGE):
    return np.full(size, number % 251, dtype=np.uint8)


async def test_frames_arrive_whole(mode):
    shape = (240, 320, 3)
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(20)]
    results = await functions.echo.options(mode=mode).run(frames)
    assert all((one == other).all() for one, other in zip(frames, results, strict=True))
    assert {result.dtype for result in results} == {np.dtype(np.uint8)}


async def test_a_large_array_arrives_read_only():
    (result,) = await echo.run([frame(1)])
    with pytest.raises(ValueError, match="read-only"):
        result[0] = 2
    private = result.copy()
    private[0] = 2


async def test_the_function_gets_it_read_only_too():
    @stream_fn(mode="process")
    async def writes(events):
        async for event in events:
            try:
                event[0] = 1
            except ValueError as error:
                yield str(error)

    (text,) = await writes.run([frame(1)])
    assert "read-only" in text


@pytest.mark.parametrize("where", ["function", "caller"])
async def test_writing_to_a_view_says_how_to_get_a_copy(where):
    @stream_fn(mode="process")
    async def writes(events):
        async for event in events:
            if where == "function":
                event += 1
            yield event

    with pytest.raises(ValueError, match="read-only") as info:
        async with writes.open() as stream:
            await stream.send(np.zeros(100_000))
            result = await stream.recv()
            result[0] = 1
    assert "write to a copy, `array = array.copy()`" in notes(info.value)


async def test_other_errors_have_no_such_note(mode):
    with pytest.raises(ValueError, match="no array") as info:
        async with functions.echo.options(mode=mode).open():
            raise ValueError("no array at all")
    assert "copy" not in notes(info.value)


async def test_the_senders_array_is_its_own_again_after_send():
    """What is written to it afterwards does not show at the other side."""
    array = frame(1)
    async with echo.open() as stream:
        await stream.send(array)
        array[:] = 9
        result = await stream.recv()
        assert (result == 1).all()


async def test_held_longer_than_the_stream():
    async with echo.open() as stream:
        await stream.send(frame(7))
        result = await stream.recv()
    gc.collect()
    for _ in range(5):
        await echo.run([frame(8)] * 5)
    assert (result == 7).all()


async def test_held_by_the_function_while_others_come():
    @stream_fn(mode="process", buffer=4)
    async def last_ten(events):
        held = []
        async for event in events:
            held = [*held[-9:], event]
            yield [int(array[0]) for array in held], all((a == a[0]).all() for a in held)

    results = await last_ten.run(frame(number) for number in range(60))
    assert results[-1] == ([number % 251 for number in range(50, 60)], True)
    assert all(whole for _, whole in results)


async def test_dropped_in_any_order():
    rng = random.Random(2)
    held = {}
    async with functions.echo.options(mode="process", buffer=8).open() as stream:
        for number in range(200):
            await stream.send(frame(number))
            held[number] = await stream.recv()
            while len(held) > 20:
                del held[rng.choice(list(held))]
            chosen = rng.choice(list(held))
            assert (held[chosen] == chosen % 251).all()
    for number, array in held.items():
        assert (array == number % 251).all()


@pytest.mark.parametrize("where", ["client", "worker"])
async def test_hoarded(where):
    """More is kept than a ring can hold: results go on coming, all right."""

    @stream_fn(mode="process", max_bytes=4 * 1024 * 1024)
    async def hoards(events):
        kept = []
        async for event in events:
            kept.append(event)
            yield event
        yield all((array == number % 251).all() for number, array in enumerate(kept))

    fn = hoards if where == "worker" else echo.options(max_bytes=4 * 1024 * 1024)
    kept = []
    async with fn.open() as stream:
        async for result in stream.feed(frame(number) for number in range(100)):
            if where == "client":
                kept.append(result)
        await stream.end()
        rest = [result async for result in stream]
    if where == "worker":
        assert rest == [True]
    for number, array in enumerate(kept):
        assert (array == number % 251).all()


async def test_views_of_views_keep_the_memory():
    async with echo.open() as stream:
        await stream.send(np.arange(LARGE, dtype=np.int64))
        part = (await stream.recv())[1000:2000].reshape(10, 100)
        for number in range(20):
            await stream.send(frame(number))
            await stream.recv()
    gc.collect()
    assert (part.ravel() == np.arange(1000, 2000)).all()


async def test_views_inside_other_objects():
    events = [
        {"id": n, "frame": frame(n), "more": [frame(n + 1), (n, frame(n + 2))]} for n in range(9)
    ]
    results = await echo.run(events)
    gc.collect()
    for n, result in enumerate(results):
        assert (result["frame"] == n).all()
        assert (result["more"][0] == n + 1).all()
        assert (result["more"][1][1] == n + 2).all()


async def test_large_bytes_are_bytes(mode):
    """A view is for arrays; `bytes` come out as `bytes`, whatever their size."""
    for value in (bytes(5), bytes(500_000), bytearray(500_000), "x" * 500_000):
        (result,) = await functions.echo.options(mode=mode).run([value])
        assert type(result) is type(value)
        assert result == value


async def test_arrays_outlive_the_worker():
    import asyncio
    import os
    import signal

    from velo._process import clients
    from velo.errors import WorkerDied

    @stream_fn(mode="process")
    async def work(events):
        async for event in events:
            yield os.getpid(), event

    stream = await work.open()
    await stream.send(frame(5))
    pid, array = await stream.recv()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        await asyncio.wait_for(stream.recv(), HANG)
    await stream.aclose()
    clients.shutdown()
    gc.collect()
    assert (array == 5).all()


async def test_every_kind_of_array(mode):
    arrays = [
        np.zeros((0, 3)),
        np.array(5.5),
        np.asfortranarray(np.arange(60_000, dtype=np.float64).reshape(200, 300)),
        np.arange(60_000)[::2],
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["a", "bb"]),
        np.arange(10, dtype=">i2"),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.ones(3, dtype=bool),
        np.arange(5, dtype=np.complex64),
        np.float32(1.5),
        np.int8(-3),
    ]
    results = await functions.echo.options(mode=mode).run(arrays)
    for array, result in zip(arrays, results, strict=True):
        assert type(result) is type(array)
        assert result.dtype == array.dtype
        assert result.shape == array.shape
        assert (result == array).all()


async def test_small_arrays_and_frames_may_be_written_to(mode):
    """As inline, where they are the sender's own: events and results alike."""
    pandas = pytest.importorskip("pandas")

    @stream_fn(mode=mode)
    async def doubled(events):
        async for event in events:
            if isinstance(event, np.ndarray):
                event *= 2
            else:
                event.loc[:, "a"] = event["a"] * 2
            yield event

    array, frame = np.array([1.0, 2.0]), pandas.DataFrame({"a": [1.0, 2.0]})
    async with doubled.open() as stream:
        results = [r async for r in stream.feed([array.copy(), frame.copy()])]
    for result in results:
        if isinstance(result, np.ndarray):
            result += 1
        else:
            result.loc[:, "a"] = result["a"] + 1
    assert results[0].tolist() == [3.0, 5.0]
    assert results[1]["a"].tolist() == [3.0, 5.0]
