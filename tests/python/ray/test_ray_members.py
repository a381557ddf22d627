"""Members of a service: how each runs on its node, and where it is placed."""

import asyncio
import os
import signal
import sys

import pytest

from helpers import HANG
from local_actors import Local
from ray_cluster import INSTALLED
from velo._ray import deployment as deployments
from velo._ray import library as ray_library
from velo._ray import member as members
from velo._ray.cluster import NodeInfo
from velo._ray.deployment import Deployment
from velo._ray.member import Member

pytestmark = pytest.mark.skipif(not INSTALLED, reason="ray is not installed: velo-stream[ray]")


LONG = "print('a' * 200_000, flush=True); print('b', end='')"


async def test_members_may_write_long_lines(monkeypatch):
    member = Member([], ".", 0)
    member._command = [sys.executable, "-c", LONG]
    lines, code = [], None
    async with asyncio.timeout(HANG):
        while code is None:
            some, code = await member.news()
            lines += some
    assert code == 0
    assert ("".join(lines[:-1]), lines[-1]) == ("a" * 200_000, "b")


async def test_a_member_ends_though_what_it_has_started_goes_on(monkeypatch):
    monkeypatch.setattr(members, "_LAST_OUTPUT", 0.1)
    member = Member([], ".", 0)
    starts = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"
    member._command = [sys.executable, "-c", f"{starts}; raise SystemExit(7)"]
    lines, code = [], None
    async with asyncio.timeout(HANG):
        while code is None:
            some, code = await member.news()
            lines += some
    os.kill(int(lines[0]), signal.SIGKILL)
    assert code == 7


@pytest.mark.parametrize(
    ("arguments", "drain"),
    [([], 0), (["--drain", "300"], 300), (["--drain", "1", "--drain=2.5"], 2.5), (["--drain"], 0)],
)
def test_a_member_that_stops_has_the_time_to_drain(arguments, drain):
    assert members._drain_of(["run", "app.py:fn", *arguments]) == drain


async def test_a_member_that_waits_for_its_next_start_can_be_stopped():
    member = Member([], ".", None)
    member._command = [sys.executable, "-c", "raise SystemExit(7)"]
    async with asyncio.timeout(HANG):
        while not (await member.news())[0]:
            pass
        pid = await member.pid()
        await member.stop()
        while (code := (await member.news())[1]) is None:
            pass
    assert (code, await member.pid()) == (7, pid)


async def test_members_that_are_stopped_as_they_are_placed_do_not_start(monkeypatch):
    started = []
    deployment = Deployment([], ".", 1, None, print)
    monkeypatch.setattr(deployment, "_start", started.append)

    def alive():
        deployment._stopping.set()  # meanwhile
        return [NodeInfo("n", "node n", 1)]

    monkeypatch.setattr(deployments, "alive", alive)
    assert await deployment._place(1) is None
    assert started == []


async def test_a_deployment_says_that_it_waits_for_a_node(monkeypatch):
    said = []
    deployment = Deployment([], ".", 1, None, lambda *line: said.append(line))
    answers = [[], [], None]

    def alive():
        answer = answers.pop(0)
        if answer is None:
            deployment._stopping.set()
        return answer or []

    monkeypatch.setattr(deployments, "alive", alive)
    monkeypatch.setattr(deployments, "_LOOK", 0)
    assert await deployment._place(1) is None
    assert said == [(1, "no node", "velo: waits for a node of the cluster that is alive")]


async def test_a_member_that_is_gone_without_a_text_is_named(monkeypatch):
    said = []
    deployment = Deployment([], ".", 1, None, lambda *line: said.append(line))
    gone, ended = ray_library.load().exceptions.RayError, []

    async def pid():
        return 7

    async def news():
        if not ended:
            ended.append(1)
            raise gone
        return [], 0

    monkeypatch.setattr(deployment, "_start", lambda _: Local(None, news=news, pid=pid))
    monkeypatch.setattr(deployments, "alive", lambda: [NodeInfo("n", "node n", 1)])
    async with asyncio.timeout(HANG):
        assert await deployment._keep(1) == 0
    assert said == [(1, "node n", "velo: has gone (RayError)")]


async def test_a_member_that_no_node_can_start_is_given_up(monkeypatch):
    said = []
    deployment = Deployment([], ".", 1, 2, lambda *line: said.append(line))

    async def pid():
        raise ray_library.load().exceptions.RayError("no velo there")

    monkeypatch.setattr(deployment, "_start", lambda _: Local(None, pid=pid))
    nodes = [NodeInfo(name, f"node {name}", 1) for name in "ab"]
    monkeypatch.setattr(deployments, "alive", lambda: nodes)
    monkeypatch.setattr(deployments, "pause_after", lambda failures: 0.0)
    async with asyncio.timeout(HANG):
        assert await deployment._keep(1) == 1
    why = "velo: did not start (no velo there)"
    assert said == [(1, f"node {name}", why) for name in "aba"]
