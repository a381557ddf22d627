"""Recordings that are run again: those of today, and those that are kept in tests/recordings."""

import asyncio
import re

import numpy
import pytest

import recorded
from recorded import FOLDER
from velo import stream_fn
from velo.events import TICK
from velo.testing import ReplayDifference, load_recording, recordings, replay


def test_there_are_recordings_of_each_kind():
    steps = [
        step.kind for path in recordings(FOLDER) for step in load_recording(path, trust=True).steps
    ]
    assert set(steps) >= {
        "event", "tick", "end", "result", "returned", "raised", "cancelled",
    }  # fmt: skip
    assert len(list(recordings(FOLDER))) >= 7


@pytest.mark.parametrize("path", recordings(FOLDER), ids=lambda path: path.name)
def test_what_is_kept_is_what_the_functions_do(path):
    """A recording of an older velo loads in every one to come."""
    recording = load_recording(path, trust=True)
    first, *rest = (getattr(recorded, name) for _, name, _ in recording.head["function"])
    for part in rest:
        first = first | part
    outcome = replay(recording, first)
    assert outcome.difference is None
    assert outcome.events == len(recording.events)
    if recording.whole:
        assert outcome.results == len(recording.results)
        assert outcome.end == recording.steps[-1].kind
    else:  # its worker was killed: what it yielded last may not have been written
        assert outcome.results - len(recording.results) in (0, 1)
        assert outcome.end == "open"


@stream_fn
async def sums(events):
    total = 0
    async for event in events:
        total += event
        yield total
    yield "the end"


def record(fn, events, folder):
    fn.options(record=folder).run_sync(events)
    (path,) = recordings(folder)
    return load_recording(path, trust=True)


def test_the_same(tmp_path, mode):
    recording = record(sums.options(mode=mode), [1, 2, 3], tmp_path)
    outcome = replay(recording)
    assert (outcome.events, outcome.results, outcome.end) == (3, 4, "returned")
    assert replay(recording.path).difference is None


async def test_while_an_event_loop_runs(tmp_path):
    await sums.options(record=tmp_path).run([1])
    (path,) = recordings(tmp_path)
    assert replay(path).events == 1


def test_until_shows_where_it_is(tmp_path):
    recording = record(sums, [1, 2, 3], tmp_path)
    outcome = replay(recording, until=2)
    assert (outcome.events, outcome.latest, outcome.end) == (2, [3], "until")
    assert outcome.variables["total"] == 3
    assert outcome.variables["event"] == 2
    assert outcome.line == sums._function.__code__.co_firstlineno + 3
    assert replay(recording, until=0).variables["total"] == 0
    assert replay(recording, until=9).end == "returned"


@stream_fn
async def other_value(events):
    total = 0
    async for event in events:
        total += event
        yield total if total < 6 else {"total": total, "many": ["words", "x" * 80], "k": 1}


@stream_fn
async def other_type(events):
    total = 0
    async for event in events:
        total += event
        yield float(total)


@stream_fn
async def fewer(events):
    async for _ in events:
        pass
    yield "the end"


@stream_fn
async def more(events):
    total = 0
    async for event in events:
        total += event
        yield total
        yield total


@stream_fn
async def shorter(events):
    async for event in events:
        yield event
        return


@stream_fn
async def broken(events):
    async for event in events:
        yield event
        raise KeyError(event)


@stream_fn
async def stuck(events):
    async for event in events:
        yield event
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("fn", "number", "then", "now"),
    [
        (other_value, 3, ("yielded", 6), "yielded"),
        (other_type, 1, ("yielded", 1), "yielded"),
        (fewer, 1, ("yielded", 1), "asks for its next event"),
        (more, 1, ("asked for its next event", None), "yielded"),
        (shorter, 1, ("asked for its next event", None), "returned"),
        (broken, 1, ("asked for its next event", None), "raised"),
        (stuck, 1, ("asked for its next event", None), "waits for something else"),
    ],
    ids=lambda value: getattr(value, "_name", None),
)
def test_the_first_difference(tmp_path, fn, number, then, now):
    recording = record(sums, [1, 2, 3], tmp_path)
    with pytest.raises(ReplayDifference) as caught:
        replay(recording, fn)
    difference = caught.value.difference
    assert (difference.number, difference.recorded, difference.now[0]) == (number, then, now)
    assert f"recorded: it {then[0]}" in str(caught.value)
    assert f"now:      it {now}" in str(caught.value)
    assert re.search(rf"^  > +{number}  {number}$", str(caught.value), re.MULTILINE)


def test_large_values_are_shown_beside_each_other(tmp_path):
    @stream_fn
    async def tables(events):
        async for event in events:
            yield {f"field {number}": number * event for number in range(30)}

    @stream_fn
    async def others(events):
        async for event in events:
            yield {f"field {number}": number * event if number != 7 else 0 for number in range(30)}

    with pytest.raises(ReplayDifference) as caught:
        replay(record(tables, [1], tmp_path), others)
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line[:2] in ("- ", "+ ")] == [
        "-  'field 7': 7,",
        "+  'field 7': 0,",
    ]


def test_another_exception(tmp_path):
    @stream_fn
    async def fails(events):
        async for event in events:
            raise ValueError(f"no {event}")
        yield

    with pytest.raises(ValueError, match="no 1"):
        fails.options(record=tmp_path).run_sync([1])
    (path,) = recordings(tmp_path)
    assert replay(path, fails).end == "raised"
    with pytest.raises(ReplayDifference) as caught:
        replay(path, broken)
    assert "recorded: it raised ValueError: no 1" in str(caught.value)
    assert "now:      it yielded 1" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), numpy.arange(3), {"a", "b", "c"}, {1: {2: ()}}])
def test_values_that_equal_themselves_or_not(tmp_path, value):
    @stream_fn
    async def constant(events):
        async for _ in events:
            yield value

    assert replay(record(constant, [1], tmp_path), constant).results == 1


def test_a_function_that_changes_its_events(tmp_path):
    @stream_fn
    async def changes(events):
        async for event in events:
            event.append(len(event))
            yield len(event)

    recording = record(changes, [[], [1]], tmp_path)
    assert recording.events == [[], [1]]
    assert replay(recording, changes).results == 2
    assert recording.events == [[], [1]]


def test_a_crash_is_replayed_up_to_its_event(tmp_path):
    recording = record(sums, [1, 2, 3], tmp_path)
    data = recording.path.read_bytes()
    recording.path.write_bytes(data[: data.rindex(b"result") - 12])
    seen = []

    @stream_fn
    async def sums_again(events):
        total = 0
        async for event in events:
            seen.append(event)
            total += event
            yield total

    # Here the last results were cut off, and so the function is free to yield what it likes.
    outcome = replay(recording.path, sums_again)
    assert (outcome.end, seen) == ("open", [1, 2, 3])


def test_ticks_come_where_they_came_and_nothing_is_waited_for():
    (path,) = (path for path in recordings(FOLDER) if "sessions" in path.name)

    @stream_fn
    async def no_ticks(events):
        async for event in events:
            yield event

    @stream_fn
    async def other_gap(events):
        session = []
        async for event in events.ticks(3600.0):
            if event is not TICK:
                session.append(event)
            elif session:
                yield session
                session = []
        if session:
            yield session

    assert replay(path, other_gap).difference is None
    with pytest.raises(ReplayDifference):
        replay(path, no_ticks)


def test_a_function_that_cannot_be_found(tmp_path):
    @stream_fn
    async def local(events):
        async for event in events:
            yield event

    recording = record(local, [1], tmp_path)
    with pytest.raises(LookupError, match="has no name that it could be imported by"):
        replay(recording)
    recording.head["function"] = [["test_replay", "nobody", __file__]]
    with pytest.raises(LookupError, match="there is no `nobody` of `test_replay` any more"):
        replay(recording)
    recording.head["function"] = [["nowhere", "nobody", None]]
    with pytest.raises(LookupError, match="module `nowhere` cannot be imported"):
        replay(recording)
