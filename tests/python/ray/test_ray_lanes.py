"""How lanes reach a node and end there, with the node in this process."""

import asyncio
import gc
import importlib
import os
import weakref
from types import SimpleNamespace

import pytest

from helpers import HANG, notes, until
from key_sums import collect
from local_actors import Local
from ray_cluster import INSTALLED
from ray_functions import Refused, sums
from velo import _core
from velo._process.client import Client
from velo._process.clients import client_of
from velo._ray import carrier as carriers
from velo._ray import cluster as ray_cluster_of_velo
from velo._ray import relays as relays_of_velo
from velo._ray.carrier import Carrier
from velo._ray.cluster import NodeInfo
from velo._ray.node import Node
from velo._ray.relays import Relays
from velo.errors import PoolError

pytestmark = pytest.mark.skipif(not INSTALLED, reason="ray is not installed: velo-stream[ray]")


async def test_a_caller_that_passed_for_dead_loses_its_lanes():
    node, lost = Node(), []
    carrier = Carrier(Local(node), "n", "node n", (1, 1), lost.append)
    await carrier.open(sums._spec, "sums", 10)
    for caller in list(node._callers):
        await node.leave(caller)
    await until(lambda: carrier.lost)
    assert (lost, carrier._lanes) == ([carrier], {})


@pytest.fixture
def node(monkeypatch):
    """A cluster of one node, in this process."""
    node = Node()
    monkeypatch.setattr(ray_cluster_of_velo, "_actors", {})
    monkeypatch.setattr(ray_cluster_of_velo, "pinned", lambda *_: Local(node))
    monkeypatch.setattr(ray_cluster_of_velo, "connect", lambda: None)
    monkeypatch.setattr(ray_cluster_of_velo, "alive", lambda: [NodeInfo("n", "node n", 1)])
    return node


async def test_a_node_may_have_forgotten_a_caller_without_lanes(node):
    async with asyncio.timeout(HANG):
        for _ in range(3):
            assert await sums.run([(0, n) for n in range(4)]) == [0, 1, 3, 6, ("end", 4)]
            (carrier,) = await ray_cluster_of_velo.cluster_of(asyncio.get_running_loop()).ready()
            await until(lambda: not carrier._listening)
            for caller in list(node._callers):
                await node.leave(caller)


async def test_a_caller_that_waits_for_a_lane_is_not_taken_for_gone(node, monkeypatch):
    carrier = Carrier(Local(node), "n", "node n", (1, 1), lambda _: None)
    opened, gate = gated(monkeypatch)
    opening = asyncio.create_task(carrier.open(sums._spec, "sums", 10))
    await until(lambda: opened)
    (relays,) = node._callers.values()
    monkeypatch.setattr(relays_of_velo, "_GONE", -1.0)
    assert not relays.is_left
    gate.set()
    await opening
    assert relays.is_left
    relays.close()


def gated(monkeypatch):
    """Has lanes wait once they are opened: those, and what they wait for."""
    opened, gate, open_lane = [], asyncio.Event(), Client.open_lane

    async def opens(*about):
        opened.append(await open_lane(*about))
        await gate.wait()
        return opened[-1]

    monkeypatch.setattr(Client, "open_lane", opens)
    return opened, gate


@pytest.mark.parametrize("first", ["opened", "dropped"])
async def test_a_lane_that_nobody_waits_for_is_cancelled(node, monkeypatch, first):
    async def open_lane(*about):
        await asyncio.shield(node.open_lane(*about))
        await asyncio.Event().wait()  # its answer is on the way

    carrier = Carrier(Local(node, open_lane=open_lane), "n", "node n", (1, 1), lambda _: None)
    opened, gate = gated(monkeypatch)
    opening = asyncio.create_task(carrier.open(sums._spec, "sums", 10))
    await until(lambda: opened)
    (relays,) = node._callers.values()
    if first == "opened":
        gate.set()
        await until(lambda: relays._lanes)
    assert streams_here() == 1
    opening.cancel()
    await asyncio.wait({opening})
    if first == "dropped":
        await until(lambda: not relays._opening)
        gate.set()
    await until(lambda: streams_here() == 0)
    assert relays._lanes == {}


async def test_lanes_of_a_caller_that_is_gone_keep_no_place(node):
    carrier = Carrier(Local(node), "n", "node n", (1, 1), lambda _: None)
    await carrier.open(sums._spec, "sums", 10)
    assert streams_here() == 1
    await node.leave(carrier._caller)
    await until(lambda: streams_here() == 0)


def streams_here():
    """How many streams and lanes the workers of this event loop have."""
    client = client_of(asyncio.get_running_loop(), "embedded")
    return sum(link.end.streams for link in client.links.values())


async def test_an_exception_that_ends_a_lane_is_raised_as_it_was(node, monkeypatch, tmp_path):
    monkeypatch.setenv("MAIN_PID", str(os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fails_elsewhere.py").write_text(FAILS_ELSEWHERE)
    fn = importlib.import_module("fails_elsewhere").fn
    async with asyncio.timeout(HANG):
        with pytest.raises(Refused, match="a module: it is imported") as caught:
            await collect(fn.keyed([(1, 1)], key=0))
    assert "on node n" in notes(caught.value)


FAILS_ELSEWHERE = """
import os
from ray_functions import Refused
from velo import stream_fn
if os.getpid() != int(os.environ["MAIN_PID"]):
    raise Refused("a module", "it is imported")
@stream_fn(mode="ray")
async def fn(events):
    async for event in events:
        yield event
"""


async def test_frames_that_nobody_can_read_end_the_lanes():
    async def get(_):
        return b"no frames"

    lost = []
    carrier = Carrier(Local(None, get=get), "n", "node n", (1, 1), lost.append)
    lane = _core.RemoteLane(lambda: None, "node n", 1 << 20)
    carrier._lanes[1] = lane, "sums"
    async with asyncio.timeout(HANG):
        await carrier._listen()
    assert (lost, carrier._lanes) == ([carrier], {})


def test_event_loops_that_are_closed_are_let_go():
    async def uses_a_node():
        loop = asyncio.get_running_loop()
        cluster = ray_cluster_of_velo.cluster_of(loop)
        cluster._carriers["n"] = Carrier(None, "n", "node n", (1, 1), cluster._lost)
        return weakref.ref(loop)

    first, _ = asyncio.run(uses_a_node()), asyncio.run(uses_a_node())
    gc.collect()
    assert first() is None


async def test_calls_of_a_caller_that_is_gone_return():
    relays, cancelled = Relays(), []
    nothing = SimpleNamespace(
        cancel=lambda: cancelled.append(1), take=lambda most: b"", over=(None, None)
    )
    lane = relays._lanes[1] = relays_of_velo._Lane(nothing)
    lane.behind = 1 << 30
    calls = asyncio.gather(relays.put(0, []), relays.get())
    await until(lambda: relays._waiting)
    relays.close()
    async with asyncio.timeout(HANG):
        await calls
    assert cancelled == [1]


async def test_a_caller_without_room_tells_that_it_lives(monkeypatch):
    monkeypatch.setattr(carriers, "_HOLD", 0.01)
    held = []

    async def hold(caller):
        held.append(caller)

    carrier = Carrier(Local(None, hold=hold), "n", "node n", (1, 1), lambda _: None)
    carrier._lanes[1] = SimpleNamespace(is_full=True), "sums"
    listening = asyncio.create_task(carrier._listen())
    await until(lambda: len(held) > 2)
    carrier._actor = Local(Node())
    listening.cancel()


async def test_nodes_whose_actors_do_not_answer_are_told(monkeypatch):
    async def hello():
        await asyncio.Event().wait()

    monkeypatch.setattr(ray_cluster_of_velo, "_START", 0.05)
    monkeypatch.setattr(ray_cluster_of_velo, "_actor_on", lambda _: Local(None, hello=hello))
    monkeypatch.setattr(ray_cluster_of_velo, "connect", lambda: None)
    monkeypatch.setattr(ray_cluster_of_velo, "alive", lambda: [NodeInfo("n", "node n", 1)])
    async with asyncio.timeout(HANG):
        with pytest.raises(PoolError, match=r"node n runs no streams; .* nothing for 0\.05 s"):
            await ray_cluster_of_velo.Cluster().ready()
