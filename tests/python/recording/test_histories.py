"""Recordings that are kept are histories: run again, in a worker that dies at any of their events
too, each function still yields what it did then.

What those of older versions of velo hold is what recovery has to live up to in every one to come.
"""

import asyncio

import pytest

import recorded
import sample_values
from helpers import HANG
from recovering import fresh_pool, gate, kill_workers  # noqa: F401
from velo.testing import load_recording, recordings

pytestmark = pytest.mark.embedded

# Those that depend on time: `velo.testing.replay` has time of its own for them, in test_replay.py.
TIMED = {"sessions", "patient"}
HISTORIES = [
    path
    for path in recordings(recorded.FOLDER)
    if load_recording(path, trust=True).name not in TIMED
]


def history(path):
    """Its function, its events, and what it yielded, each result as it travels."""
    recording = load_recording(path, trust=True)
    first, *rest = (getattr(recorded, name) for _, name, _ in recording.head["function"])
    for part in rest:
        first = first | part
    return first, recording


def test_there_are_enough():
    """Of a chain, of one that was cut short, and of both workers of a stream that had two."""
    found = [load_recording(path, trust=True) for path in HISTORIES]
    assert len(found) >= 8
    assert any(len(recording.head["function"]) > 1 for recording in found)
    ledgers = [recording for recording in found if recording.name == "ledger"]
    assert {recording.whole for recording in ledgers} == {True, False}
    assert any(recording.head["state"][0] for recording in ledgers), "one began with a snapshot"


async def run_again(fn, recording, dies_at=None):
    """All results, where the worker dies once it was given so many events."""
    results = []
    async with fn.open() as stream:
        for number, event in enumerate(recording.events, 1):
            await stream.send(event)
            if number == dies_at:
                await kill_workers()
        if recording.steps[-1].kind == "returned":
            await stream.end()
            results = [result async for result in stream]
        else:  # cut short: what it had yielded by then
            for _ in recording.results:
                results.append(await asyncio.wait_for(stream.recv(), HANG))
            stream._cancel()
    return results


def same(results, recording):
    # Not by their bytes: for some hash seeds, the order of an equal set depends on who has made it.
    return sample_values.same(list(results), list(recording.results))


def begins_anew(recording):
    """Whether it has the whole life of its stream: another worker's snapshot cannot be given."""
    return not any(recording.head["state"])


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name)
async def test_a_history_comes_out_the_same(path, mode):
    fn, recording = history(path)
    if not begins_anew(recording):
        pytest.skip("it begins with another worker's state; `replay` gives it that")
    results = await run_again(fn.options(mode=mode), recording)
    assert same(results, recording)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name)
async def test_a_history_comes_out_the_same_whichever_event_its_worker_dies_at(path):
    fn, recording = history(path)
    if not begins_anew(recording):
        pytest.skip("it begins with another worker's state; `replay` gives it that")
    recovering = fn.options(mode="process", recover="replay", workers=1)
    for number in range(1, len(recording.events) + 1):
        results = await run_again(recovering, recording, dies_at=number)
        assert same(results, recording), f"killed after event {number}"


async def test_a_life_in_two_workers_is_one_history():
    """The second worker went on where the first one's snapshot had it, and lost nothing."""
    parts = [
        load_recording(path, trust=True)
        for path in HISTORIES
        if load_recording(path, trust=True).name == "ledger"
    ]
    first, second = sorted(parts, key=lambda part: part.whole)
    state = second.head["state"][0]
    assert state
    behind = len(first.events) + len(second.events) - 12
    events = first.events + second.events[behind:]
    assert len(events) == 12
    yielded = [result async for result in recorded.ledger(events, {})]
    assert first.results == yielded[: len(first.results)]
    assert second.results == yielded[12 - len(second.results) :]
