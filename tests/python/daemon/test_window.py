"""What is seen of the streams of a standalone supervisor, and that seeing disturbs nobody."""

import asyncio
import contextlib
import json
import logging
import os
import time
from types import SimpleNamespace

import pytest

from helpers import HANG, until
from standalone import velo_until
from velo import stream_fn
from velo._worker import introspection
from velo._worker.client import OpenStream
from velo.cli.supervisor.admin_connection import AdminConnection
from velo.cli.supervisor.figures import Watcher
from velo.errors import StreamClosed


async def inspected(daemon, name, wanted=lambda one: True):
    """The stream that `velo inspect --json` shows, once it satisfies."""

    def fits(told):
        assert told.code == 0, told.err
        streams = told.json["streams"]
        return streams and wanted(streams[0])

    (one,) = (await velo_until(daemon, "inspect", name, "--json", fits=fits)).json["streams"]
    return one


@stream_fn(mode="process", workers=1)
async def counting(events):
    seen = {}
    async for event in events:
        seen[event] = len(seen)
        if event == "error":
            logging.getLogger("shop").error("no stock of %s", "pears")
        if event == "sleep":
            await asyncio.sleep(3600)
        if isinstance(event, tuple):
            while not os.path.exists(event[1]):  # holds its worker until the test lets it go on
                time.sleep(0.01)
        yield event


async def test_status_shows_streams_with_their_figures(daemon):
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(counting.open()) for _ in range(3)]
        for number in range(5):
            await streams[0].send(number)
            assert await streams[0].recv() == number
        for event in ("sleep", "a", "b"):
            await streams[1].send(event)
        while streams[1].metrics.queued != 3:
            await asyncio.sleep(0.01)
        told = await velo_until(
            daemon,
            "status",
            "--json",
            fits=lambda told: all(stream["name"] for stream in told.json["streams"]),
        )
        state = told.json
        shown = {stream["name"]: stream for stream in state["streams"]}
        assert len(shown) == 3
        first, second = (shown[stream.name] for stream in streams[:2])
        assert (first["events"], first["results"], first["queued"]) == (5, 5, 0)
        assert (second["events"], second["results"], second["queued"]) == (3, 0, 3)
        assert {stream["function"] for stream in shown.values()} == {f"{__name__}:counting"}
        assert all(stream["age"] > 0 for stream in shown.values())
        assert 0 < first["latency_p50"] <= first["latency_p99"]
        assert second["latency_p50"] is None
        (worker,) = state["workers"]
        assert (worker["residents"], worker["events"], worker["queued"]) == (3, 8, 3)
        assert worker["memory"] > 1 << 20
        assert worker["cpu"] is not None
        await velo_until(
            daemon,
            "status",
            fits=lambda told: all(stream.name in told.out for stream in streams),
        )


async def test_latencies_are_those_that_the_program_has_measured(daemon):
    """They are shown ten times a second at most: what was shown last may be older."""
    watcher = Watcher(AdminConnection(str(daemon.path)))
    async with counting.open() as stream, asyncio.timeout(HANG):
        while True:
            await stream.send(1)
            assert await stream.recv() == 1
            (shown,) = (await asyncio.to_thread(watcher.look))["streams"]
            if shown["latency_p50"] == pytest.approx(stream.metrics.latency_p50, rel=0.01):
                return


async def test_counts_of_a_worker_outlive_links(daemon):
    async with counting.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
    line = AdminConnection(str(daemon.path))
    assert [worker["events"] for worker in Watcher(line).look()["workers"]] == [1]


async def test_streams_are_named_once(daemon):
    """What a worker has said is not asked again, and what it opens later is told."""
    line = AdminConnection(str(daemon.path))
    asked = []

    class Spy:
        def look(self, known, detached):
            asked.append(dict(known))
            line.supervisor.look(known, detached)

    watched = AdminConnection(str(daemon.path))
    watched.supervisor, watched.hear = Spy(), line.hear
    watched.state = line.state
    watcher = Watcher(watched)

    async def names():
        while True:  # a worker that has just started may not answer in time
            looked = await asyncio.to_thread(watcher.look)
            found = [stream["name"] for stream in looked["streams"]]
            if None not in found:
                return sorted(found)

    async with counting.open() as first, counting.open() as second:
        both = sorted([first.name, second.name])
        assert await names() == both
        assert asked[0] == {}
        assert await names() == both
        (since,) = asked[-1].values()
        assert since > 0
        async with counting.open() as third:
            assert await names() == sorted([*both, third.name])
        await until(lambda: counting.metrics.open == 2)
        async with counting.open() as fourth:  # in the third one's place
            assert await names() == sorted([*both, fourth.name])


def test_no_more_is_told_at_once_than_fits():
    """The rest is told to who asks again."""
    count = 2500

    class Task:
        def get_name(self):
            return "x" * 50

    client = SimpleNamespace(number=7, functions={}, tasks={}, opened={})
    for slot in range(count):
        opened = OpenStream(0, introspection.moment(), None)
        client.tasks[slot], client.opened[slot] = Task(), opened
    slots, since, more, times = [], 0, True, 0
    while more:
        told = introspection.opened_since([client], since, 64 << 10)
        assert len(told) < 64 << 10
        said = json.loads(told)
        slots += [slot for _, slot, *_ in said["opened"]]
        since, more, times = said["until"], said["more"], times + 1
    assert slots == list(range(count))
    assert times > 3
    assert json.loads(introspection.opened_since([client], since, 64 << 10))["opened"] == []


async def test_inspect_shows_where_a_function_waits(daemon):
    async with counting.open() as stream:
        for event in ("a", "error", "sleep"):
            await stream.send(event)
        assert [await stream.recv() for _ in range(2)] == ["a", "error"]
        one = await inspected(daemon, stream.name, lambda one: "'sleep'" in one["locals"]["event"])
        assert one["state"] == "waiting"
        assert one["file"] == __file__
        with open(__file__) as source:
            assert "asyncio.sleep(3600)" in source.read().splitlines()[one["line"] - 1]
        assert one["waits_for"][0].startswith("sleep at ")
        assert one["locals"]["seen"] == "{'a': 0, 'error': 1, 'sleep': 2}"
        assert one["error"] == "no stock of pears"
        assert (one["events"], one["queued"], one["results"]) == (3, 1, 2)
        told = await velo_until(
            daemon, "inspect", stream.name, fits=lambda told: f"{stream.name}: waiting" in told.out
        )
        assert "event  = 'sleep'" in told.out
    told = await velo_until(daemon, "inspect", stream.name, fits=lambda told: told.code == 1)
    assert f"no stream `{stream.name}` is open" in told.err


async def test_inspect_shows_the_stack_of_one_that_holds_its_worker(daemon, tmp_path):
    gate = tmp_path / "gate"
    async with counting.open() as stream:
        await stream.send(("hold", str(gate)))
        words = ("inspect", stream.name, "--json")
        told = await velo_until(
            daemon,
            *words,
            fits=lambda told: any("in counting" in one["stack"] for one in told.json["stuck"]),
        )
        (stuck,) = told.json["stuck"]
        assert [one["running_event"] for one in stuck["streams"]] == [1]
        # It was disturbed in nothing, and what it wrote is not taken for its last words.
        gate.touch()
        assert await stream.recv() == ("hold", str(gate))


async def test_inspect_tells_of_one_that_has_failed(daemon):
    @stream_fn(mode="process", workers=1)
    async def failing(events):
        async for event in events:
            yield 1 / event

    async with failing.open() as stream:
        await stream.send(0)
        with pytest.raises(ZeroDivisionError):
            await stream.recv()
        one = await inspected(daemon, stream.name)
        assert (one["state"], one["error"]) == ("failed", "ZeroDivisionError('division by zero')")


@pytest.mark.parametrize("first", [None, "a", "sleep"])
async def test_a_stream_that_is_ended_from_outside_says_why(daemon, first):
    """Before its first event, at a yield, and while it waits for something else."""
    async with counting.open() as stream, counting.open() as other:
        if first is not None:
            await stream.send(first)
        if first == "sleep":
            await inspected(daemon, stream.name, lambda one: "sleep" in str(one["locals"]))
        line = AdminConnection(str(daemon.path))
        line.supervisor.end(stream.name, "ended by a person")
        await asyncio.to_thread(line.look)
        with pytest.raises(StreamClosed, match="ended by a person"):
            while True:
                await stream.recv()
        with pytest.raises(StreamClosed, match="ended by a person"):
            await stream.send("more")
        await other.send("a")
        assert await other.recv() == "a"
