"""Detached sessions are listed, inspected and ended."""

import asyncio
import json
from types import SimpleNamespace

import pytest

import functions
from helpers import HANG, ask, until
from standalone import velo, velo_until
from terminal import top
from velo._api import session
from velo._worker.detached import DetachedSessions
from velo.cli.supervisor.admin_connection import AdminConnection
from velo.cli.supervisor.exporting import SupervisorFigures
from velo.cli.supervisor.figures import Watcher

counting = functions.numbered.options(mode="process", workers=2, timeout=None)


async def seen(watcher, wanted):
    """What is seen, once it satisfies."""
    async with asyncio.timeout(HANG):
        while True:
            state = await asyncio.to_thread(watcher.look)
            if wanted(state):
                return state
            await asyncio.sleep(0.02)


def keys_of(state):
    return sorted(stream["key"] for stream in state["detached_sessions"])


async def test_status_shows_what_nobody_is_attached_to(daemon):
    assert await ask(counting, "user-42", "a") == (1, "a")
    assert await ask(counting, 7, "a") == (1, "a")
    await seen(Watcher(AdminConnection(str(daemon.path))), lambda state: state["detached"] == 2)
    async with counting.open(key="attached") as stream:

        def is_whole(told):
            state = told.json
            return len(state["detached_sessions"]) == 2 and all(s["name"] for s in state["streams"])

        state = (await velo_until(daemon, "status", "--json", fits=is_whole)).json
        detached = {one["key"]: one for one in state["detached_sessions"]}
        assert detached.keys() == {"user-42", "7"}
        one = detached["user-42"]
        assert one["state"] == "detached"
        assert one["function"] == "functions:numbered"
        assert one["pid"] in [worker["pid"] for worker in state["workers"]]
        assert 0 < one["detached"] <= one["age"]
        assert one["events"] is one["latency_p50"] is one["link"] is one["client"] is None
        (open_one,) = state["streams"]
        assert (open_one["name"], open_one["key"]) == (stream.name, "attached")
        assert open_one["state"] == "open"
        assert (state["detached"], state["waiting"]) == (2, 0)
        assert sum(worker["detached"] for worker in state["workers"]) == 2
        shown = ("user-42", stream.name)
        text = (
            await velo_until(
                daemon, "status", fits=lambda told: all(name in told.out for name in shown)
            )
        ).out
        (row,) = [line for line in text.splitlines() if "user-42" in line]
        assert row.split()[:3] == ["user-42", "detached", "functions:numbered"]
        assert str(one["pid"]) in row.split()
        assert any(stream.name in line and "attached" in line for line in text.splitlines())


async def test_who_waits_for_a_key_is_counted(daemon):
    async with counting.open(key="k"):
        waiting = [asyncio.create_task(ask(counting, "k", "a")) for _ in range(3)]
        watcher = Watcher(AdminConnection(str(daemon.path)))
        state = await seen(watcher, lambda state: state["waiting"] == 3)
        assert sum(worker["waiting"] for worker in state["workers"]) == 3
        told = await velo(daemon, "status")
        assert "requests that wait for a key: 3" in told.out
    await asyncio.gather(*waiting)
    await seen(watcher, lambda state: (state["waiting"], state["detached"]) == (0, 1))


async def test_a_scrape_counts_both(daemon):
    pytest.importorskip("prometheus_client")
    figures = SupervisorFigures()
    figures.watch(str(daemon.path))

    async def counted(name, wanted):
        """Waits for a sum over the workers."""
        async with asyncio.timeout(HANG):
            while True:
                families = await asyncio.to_thread(lambda: list(figures.collect()))
                (family,) = [one for one in families if one.name == name]
                if sum(sample.value for sample in family.samples) == wanted:
                    return
                await asyncio.sleep(0.02)

    for key in ("a", "b"):
        await ask(counting, key, 1)
    await counted("velo_worker_sessions_detached", 2)
    async with counting.open(key="a"):
        waiting = asyncio.create_task(ask(counting, "a", 1))
        await counted("velo_worker_key_requests_waiting", 1)
        await counted("velo_worker_sessions_detached", 1)
    await waiting
    await counted("velo_worker_key_requests_waiting", 0)
    await counted("velo_worker_sessions_detached", 2)


async def test_what_was_told_is_not_told_again_and_what_is_attached_goes(daemon):
    line = AdminConnection(str(daemon.path))
    told = []

    class Spy:
        def look(self, known, detached):
            line.supervisor.look(known, detached)

    def look():
        looks = line.look()
        for one in looks:
            if one["answer"]:
                told.extend(key for _, _, key, *_ in json.loads(one["answer"])["detached"]["named"])
        return looks

    watcher = Watcher(SimpleNamespace(supervisor=Spy(), state=line.state, look=look))

    def named():
        """What was told since this was asked last."""
        keys = sorted(told)
        told.clear()
        return keys

    for key in ("a", "b"):
        await ask(counting, key, 1)
    first = await seen(watcher, lambda state: keys_of(state) == ["a", "b"])
    assert named() == ["a", "b"]
    await seen(watcher, lambda state: state["detached"] == 2)
    assert named() == []
    async with counting.open(key="a"):
        await seen(watcher, lambda state: keys_of(state) == ["b"])
        assert named() == []
    again = await seen(watcher, lambda state: keys_of(state) == ["a", "b"])
    assert named() == ["a"]
    before, after = (
        next(one for one in state["detached_sessions"] if one["key"] == "a")
        for state in (first, again)
    )
    assert before["place"] != after["place"]
    assert before["age"] < after["age"]
    async with counting.open(key="b") as stream:
        await stream.end()
    await seen(watcher, lambda state: keys_of(state) == ["a"])


async def test_thousands_are_told_in_parts(daemon):
    """All of them are found, by whoever asks again while there is more."""
    total, one = 1500, counting.options(workers=1)
    keys = iter(range(total))

    async def some():
        for key in keys:
            await ask(one, key, "a")

    await asyncio.gather(*[some() for _ in range(8)])
    await seen(Watcher(AdminConnection(str(daemon.path))), lambda state: state["detached"] == total)
    told = await velo_until(
        daemon,
        "status",
        "--json",
        fits=lambda told: len(told.json["detached_sessions"]) == total,
    )
    state = told.json
    assert state["detached"] == total
    assert {one["key"] for one in state["detached_sessions"]} == set(map(str, range(total)))
    more = f"and {total - 50} more detached sessions"
    await velo_until(daemon, "status", fits=lambda told: more in told.out)


def test_no_more_is_told_at_once_than_fits():
    detached, longest = DetachedSessions(), 64 << 10
    for _ in range(6000):
        words = {"name": "n" * 500, "shown": "\\" * 500, "function": None}
        detached.add(SimpleNamespace(**words, began=1, detachment=0))
    number, more, named = 0, True, []
    while more:
        told = detached.since(number, longest)
        assert len(told) < longest
        said = json.loads(told)
        named += [one for one, *_ in said["named"]]
        assert len(named) > 0
        number, more = named[-1], said["more"]
    assert named == said["shown"] == list(range(1, 4001))


async def test_inspect_by_key(daemon):
    """Detached or attached, with the state that its function has."""
    await ask(counting, "user-42", "a")
    words = ("inspect", "user-42")
    told = await velo_until(daemon, *words, "--json", fits=lambda told: told.json["streams"])
    (one,) = told.json["streams"]
    assert (one["state"], one["key"], one["link"]) == ("detached", "user-42", None)
    assert one["locals"]["event"] == "'a'"
    told = await velo_until(daemon, *words, fits=lambda told: "  detached  for " in told.out)
    assert "event" in told.out
    async with counting.open(key="user-42") as stream:
        await stream.send("b")
        assert await stream.recv() == (2, "b")
        told = await velo_until(daemon, *words, "--json", fits=lambda told: told.json["streams"])
        (one,) = told.json["streams"]
        assert one["state"] != "detached"
        assert (one["key"], one["events"]) == ("user-42", 1), "those of this attachment"
        assert one["detached"] is None
    told = await velo_until(daemon, "inspect", "user-43", fits=lambda told: told.code == 1)
    assert "no stream `user-43`" in told.err


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
async def test_top_shows_them_and_ends_one(daemon, tmp_path, columns, rows):
    ends = functions.marks_its_end.options(mode="process", workers=1, timeout=None)
    for key in ("user-41", "user-42", "[bold]"):
        await ask(ends, key, str(tmp_path / key))
    with top(daemon, columns, rows) as terminal:
        lines = await terminal.shows("3 detached", "user-41", "user-42", "[bold]")
        (row,) = [line for line in lines if line.startswith("user-42")]
        assert "detached" in row.split()
        terminal.press("/user-42\r")
        await terminal.shows("only `user-42`: 1 of 3", without=["user-41"])
        terminal.press("\x1b[Bx")
        await terminal.shows("end user-42 (", "? y / n")
        terminal.press("y")
        await terminal.shows("ended user-42 (", "2 detached")
        await until(lambda: functions.marks(tmp_path / "user-42") == "x")
        assert functions.marks(tmp_path / "user-41") == ""
        assert await ask(ends, "user-42", str(tmp_path / "again")) == 1, "it begins anew"
        terminal.press("q")
        assert await terminal.ends() == 0


async def test_what_is_attached_by_now_is_not_ended(daemon):
    """A place means one parking only."""
    await ask(counting, "k", "a")
    watcher, line = Watcher(AdminConnection(str(daemon.path))), AdminConnection(str(daemon.path))
    state = await seen(watcher, lambda state: len(state["detached_sessions"]) == 1)
    (one,) = state["detached_sessions"]

    def end():
        answers = [None]
        while not all(answers):
            line.supervisor.end(one["place"], "by hand")
            answers = [look["answer"] for look in line.look()]
        return [stream for answer in answers for stream in json.loads(answer)["streams"]]

    async with counting.open(key="k") as stream:
        assert await asyncio.to_thread(end) == []
        await stream.send("b")
        assert await stream.recv() == (2, "b")
    assert await asyncio.to_thread(end) == []
    assert await ask(counting, "k", "c") == (3, "c")


def test_a_key_is_shown_on_one_line():
    assert session.shown("user-42") == "user-42"
    assert session.shown(("shop", 7)) == "('shop', 7)"
    assert session.shown(b"\x00") == "b'\\x00'"
    assert session.shown("a\n\x1b[2J\udc80") == "a\\n\\x1b[2J\\udc80"
    assert session.shown("x" * 1000) == "x" * 200 + "..."
    assert len(session.shown("\U0010ffff" * 1000)) == 203
