"""How sessions on a node are reached, with the node in this process."""

import asyncio
import os

import pytest

from helpers import HANG, drain, until
from local_actors import Local
from ray_cluster import INSTALLED
from ray_functions import counted, many_each
from velo import _core
from velo._api import remote_session
from velo._api import session_node as session_nodes
from velo._api.session_node import SessionNode
from velo._ray import buckets
from velo._ray import cluster as ray_cluster_of_velo
from velo._ray import library as ray_library
from velo._ray.cluster import NodeInfo
from velo.errors import NodeDied, PoolError

pytestmark = pytest.mark.skipif(not INSTALLED, reason="ray is not installed: velo-stream[ray]")


async def test_sessions_on_a_node_that_runs_none_are_refused(monkeypatch):
    async def hello():
        raise ray_library.load().exceptions.RayError("no velo there")

    monkeypatch.setattr(remote_session, "_START", 0.05)
    monkeypatch.setattr(remote_session, "_named", lambda _: Local(None, hello=hello))
    monkeypatch.setattr(ray_cluster_of_velo, "connect", lambda: None)
    monkeypatch.setattr(buckets, "node_of", lambda *_: NodeInfo("n", "node n", 1))
    async with asyncio.timeout(HANG):
        with pytest.raises(PoolError, match="node n runs no sessions; Ray says: no velo there"):
            await counted.open(key="a")


class Working:
    """In place of an attachment: its worker handles one event more whenever somebody looks."""

    def __init__(self, fails):
        self._fails = fails
        self.handled = 0
        self._results = []

    def _look(self):
        if self.handled < 5:
            self._results.append(self.handled)
            self.handled += 1

    def _progress(self):
        self._look()
        return 5, self.handled

    def _drain(self, most):
        self._look()
        taken, self._results = self._results[:most], self._results[most:]
        if self._fails and not taken:
            raise LookupError("behind the last event")
        return taken, False

    async def recv_batch(self, most):
        while not (taken := self._drain(most)[0]):
            await asyncio.sleep(0)
        return taken

    async def _wait_until_handled(self):
        await asyncio.sleep(0)


@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
@pytest.mark.parametrize("most", [1, 2, 1024])
async def test_a_session_counts_no_event_before_its_results(monkeypatch, most, fails):
    monkeypatch.setattr(session_nodes, "_MANY", most)
    node, got, handled, over = SessionNode(), [], 0, False
    node._attached[b"a"] = session_nodes._Attached(Working(fails))
    async with asyncio.timeout(HANG):
        while handled < 5 and not over:
            answer = await node.receive(_core.dumps((b"a", handled)))
            results, handled, over, error = _core.loads(answer)
            got += results
            assert len(got) >= handled
    assert got == list(range(5))
    assert (over, error is not None) == (fails, fails)


@pytest.fixture
def session_node(monkeypatch):
    """A node of sessions in this process."""
    node = SessionNode()
    monkeypatch.setattr(remote_session, "_named", lambda _: Local(node))
    monkeypatch.setattr(ray_cluster_of_velo, "connect", lambda: None)
    monkeypatch.setattr(buckets, "node_of", lambda *_: NodeInfo("n", "node n", 1))
    return node


async def test_a_program_that_was_detached_meanwhile_is_told(session_node):
    stream = await counted.open(key="detached")
    await stream.send("a")
    assert await stream.recv() == (1, "a")
    (name,) = session_node._attached
    await session_node.leave(name, waits=False)
    async with asyncio.timeout(HANG):
        with pytest.raises(PoolError, match="was detached from its session"):
            await stream.recv()


async def test_a_node_that_dies_under_a_session_is_named_with_its_process(
    session_node, monkeypatch
):
    async def send(blob):
        raise ray_library.load().exceptions.RayActorError

    async with await counted.open(key="dies") as stream:
        monkeypatch.setattr(session_node, "send", send)
        await stream.send("a")
        async with asyncio.timeout(HANG):
            with pytest.raises(NodeDied, match="node n of stream") as caught:
                await stream.recv()
    assert caught.value.pid == os.getpid()


@pytest.mark.parametrize("events", [5, 500])
async def test_results_come_while_a_session_has_no_room_for_events(session_node, events):
    async def sends():
        await stream.send_batch(range(events))
        await stream.end()

    async with asyncio.timeout(HANG), many_each.open(key=events) as stream:
        got, _ = await asyncio.gather(drain(stream), sends())
    assert got == [(event, number) for event in range(events) for number in range(20)]


async def test_a_session_that_has_no_room_for_events_is_fed_and_left(session_node):
    async with asyncio.timeout(HANG):
        async with many_each.open(key="fed") as stream:
            got = [result async for result in stream.feed(range(500))]
            assert got == [(event, number) for event in range(500) for number in range(20)]
            await stream.send_batch(range(4))
            await stream.recv()
        async with many_each.open(key="fed") as stream:
            await stream.send("a")
            assert await stream.recv() == ("a", 0)


@pytest.mark.parametrize("full", ["error", "drop_oldest"])
async def test_a_session_is_fed_all_events_however_full_it_is(session_node, full):
    async with asyncio.timeout(HANG):
        async with many_each.options(full=full).open(key=full) as stream:
            got = [result async for result in stream.feed(range(500))]
    assert got == [(event, number) for event in range(500) for number in range(20)]


async def test_a_program_that_takes_no_results_tells_that_it_lives(session_node, monkeypatch):
    monkeypatch.setattr(remote_session, "_HOLD", 0.01)
    held = []

    async def hold(name):
        held.append(name)

    monkeypatch.setattr(session_node, "hold", hold)
    async with await counted.open(key="slow") as stream:
        await stream.send("a")
        await until(lambda: len(held) > 2)
        assert await stream.recv() == (1, "a")
