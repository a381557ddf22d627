"""`record`: what is written down while a stream runs, and what a recording holds after a crash."""

import asyncio
import logging
import os
import signal
import threading

import numpy
import pytest

from helpers import until
from velo import StreamConfig, stream_fn
from velo.errors import WorkerDied
from velo.events import TICK
from velo.testing import crash_at, load_recording, recordings


@stream_fn
async def double(events):
    async for event in events:
        yield event * 2


@stream_fn
async def sums(events):
    total = 0
    async for event in events:
        total += event
        yield total
    yield "the end"


def only(folder):
    (path,) = recordings(folder)
    return load_recording(path, trust=True)


def kinds(recording):
    return [(step.kind, step.number) for step in recording.steps]


async def test_a_recording_has_every_step(mode, tmp_path):
    fn = sums.options(mode=mode, record=tmp_path / "new" / "folder")
    assert await fn.run([1, 2]) == [1, 3, "the end"]
    recording = only(tmp_path)
    assert kinds(recording) == [
        ("event", 1), ("result", 1), ("event", 2), ("result", 2),
        ("end", 2), ("result", 2), ("returned", 2),
    ]  # fmt: skip
    assert (recording.events, recording.results) == ([1, 2], [1, 3, "the end"])
    assert recording.whole
    assert recording.head["function"] == [["test_record", "sums", __file__]]
    assert recording.head["stream"] == "sums-1"
    assert (recording.head["pid"] == os.getpid()) is (mode == "inline")


async def test_each_stream_has_a_file(mode, tmp_path):
    fn = sums.options(mode=mode, record=tmp_path)
    results = [item async for item in fn.keyed([1, 2, 3, 4, 5], key=lambda event: event % 2)]
    assert len(results) == 7
    found = [load_recording(path, trust=True).events for path in recordings(tmp_path)]
    assert sorted(found) == [[1, 3, 5], [2, 4]]


async def test_streams_of_one_name_do_not_share_a_file(tmp_path):
    for _ in range(3):  # each set of options counts its streams from 1
        await sums.options(record=tmp_path).run([1])
    assert len(list(recordings(tmp_path))) == 3


async def test_values_of_any_kind(mode, tmp_path):
    events = [{"a": (1, None)}, numpy.arange(100_000), {3, 4}, b"\0", ValueError("x")]
    await echo.options(mode=mode, record=tmp_path).run(events)
    recording = only(tmp_path)
    for recorded in (recording.events, recording.results):
        assert repr(recorded) == repr(events)


@stream_fn
async def echo(events):
    async for event in events:
        yield event


async def test_what_cannot_be_encoded_is_named_and_disturbs_nothing(tmp_path):
    events = [1, threading.Lock(), 2]
    assert await echo.options(record=tmp_path).run(events) == events
    recording = only(tmp_path)
    assert [step.kind for step in recording.steps].count("event") == 3
    with pytest.raises(ValueError, match="event 2 could not be recorded: it was <unlocked"):
        recording.events  # noqa: B018


@stream_fn
async def fails(events):
    async for event in events:
        yield 1 / event


async def test_an_exception_is_its_last_step(mode, tmp_path):
    with pytest.raises(ZeroDivisionError):
        await fails.options(mode=mode, record=tmp_path).run([1, 0])
    recording = only(tmp_path)
    assert recording.steps[-1].kind == "raised"
    assert recording.steps[-1].value == ("ZeroDivisionError", "division by zero")


async def test_a_cancelled_stream_says_so(mode, tmp_path):
    cleaned = tmp_path / "cleaned"

    @stream_fn(mode=mode, record=tmp_path)
    async def waits(events):
        try:
            async for event in events:
                yield event
        finally:
            cleaned.touch()

    with pytest.raises(RuntimeError):
        async with waits.open() as stream:
            await stream.send(1)
            await stream.recv()
            raise RuntimeError
    assert kinds(only(tmp_path)) == [("event", 1), ("result", 1), ("cancelled", 1)]
    assert cleaned.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_the_event_that_killed_is_in_the_file(tmp_path, number):
    dies = crash_at(sums.options(mode="process", record=tmp_path), 3, signal=number)
    async with dies.open() as stream:
        for event in (1, 2):
            await stream.send(event)
            await stream.recv()
        await stream.send(3)
        with pytest.raises(WorkerDied):
            await stream.recv()
    recording = only(tmp_path)
    assert recording.events == [1, 2, 3]
    assert not recording.whole
    assert recording.name == "sums"


async def test_a_file_that_breaks_off_anywhere_is_read_up_to_there(tmp_path):
    await sums.options(record=tmp_path).run([1, 2, 3])
    (path,) = recordings(tmp_path)
    whole, data = load_recording(path, trust=True), path.read_bytes()
    lengths, messages = set(), set()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        try:
            part = load_recording(path, trust=True)
        except ValueError as error:
            messages.add(str(error).partition(": ")[2])
            continue
        assert kinds(part) == kinds(whole)[: len(part.steps)]
        lengths.add(len(part.steps))
    assert lengths == set(range(len(whole.steps)))
    assert messages == {"it is no recording", "it has no beginning"}
    path.write_bytes(data[:-20] + bytes(20))
    assert len(load_recording(path, trust=True).steps) < len(whole.steps)


async def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.velorec"
    for content, message in {b"hello": "no recording", b"velorec\x07": "its version is 7"}.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_recording(path, trust=True)


async def test_ticks_are_recorded(mode, tmp_path):
    @stream_fn(mode=mode, record=tmp_path)
    async def ticking(events):
        async for event in events.ticks(0.01):
            yield "tick" if event is TICK else event

    async with ticking.open() as stream:
        await stream.send(1)
        while await stream.recv() != 1:
            pass  # ticks that came before the event
        assert await stream.recv() == "tick"
    steps = kinds(only(tmp_path))
    at = steps.index(("event", 1))
    assert steps[at : at + 4] == [("event", 1), ("result", 1), ("tick", 1), ("result", 1)]


async def test_a_deadline_around_the_next_event_loses_nothing(mode, tmp_path):
    @stream_fn(mode=mode, record=tmp_path)
    async def impatient(events):
        source = aiter(events)
        while True:
            try:
                async with asyncio.timeout(0.01):
                    yield await anext(source)
            except TimeoutError:
                yield "nothing"
            except StopAsyncIteration:
                return

    async with impatient.open() as stream:
        assert await stream.recv() == "nothing"
        await stream.send(1)
        while await stream.recv() != 1:
            pass
    assert only(tmp_path).events == [1]


async def test_a_folder_that_cannot_be_written_to_is_warned_of(mode, tmp_path, caplog):
    (tmp_path / "file").touch()
    fn = sums.options(mode=mode, record=tmp_path / "file" / "folder")
    with caplog.at_level(logging.WARNING, "velo"):
        assert await fn.run([1]) == [1, "the end"]
        await until(lambda: "recording to" in caplog.text)
    assert "not a directory" in caplog.text.lower()


def test_the_setting():
    assert StreamConfig().record is None
    assert StreamConfig(record="x").record == os.path.abspath("x")
    for wrong in (3, b"x", ""):
        with pytest.raises((TypeError, ValueError), match="record"):
            StreamConfig(record=wrong)


async def test_a_composed_function_is_recorded_as_a_whole(mode, tmp_path):
    fn = (double | sums).options(mode=mode, record=tmp_path)
    assert await fn.run([1, 2]) == [2, 6, "the end"]
    recording = only(tmp_path)
    assert recording.events == [1, 2]
    assert recording.name == "double | sums"
