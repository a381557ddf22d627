"""`mode="ray"`: the same results on several nodes, and exact ones when nodes die."""

import asyncio
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest

import replayed
from helpers import HANG, drain, notes, until
from key_sums import collect, expected
from ray_cluster import INSTALLED
from ray_functions import Refused, counted, fails_at, many_each, saved, sums, where
from replayed import Again, TakingBack, by_key, sequence
from velo import StreamConfig, _core, stream_fn
from velo._api import remote_session
from velo._api import session_node as session_nodes
from velo._api.session_node import SessionNode
from velo._process.client import Client
from velo._process.clients import client_of
from velo._ray import buckets
from velo._ray import carrier as carriers
from velo._ray import cluster as ray_cluster_of_velo
from velo._ray import deployment as deployments
from velo._ray import library as ray_library
from velo._ray import member as members
from velo._ray import relays as relays_of_velo
from velo._ray.carrier import Carrier
from velo._ray.cluster import NodeInfo
from velo._ray.deployment import Deployment
from velo._ray.member import Member
from velo._ray.node import Node
from velo._ray.relays import Relays
from velo.errors import NodeDied, PoolError, StreamBusy, VeloError, WorkerDied

pytestmark = pytest.mark.skipif(not INSTALLED, reason="ray is not installed: velo-stream[ray]")


@pytest.fixture
def cluster(ray_cluster):
    yield ray_cluster
    ray_cluster.restore()


def killing(cluster):
    """A fault for `collect`: a node is killed."""
    return lambda: asyncio.to_thread(cluster.kill)


# What is the same as elsewhere.


async def test_results_are_in_order_within_each_key(cluster):
    source = [(n % 50, n) for n in range(20_000)]
    assert await collect(sums.keyed(source, key=0)) == expected(source)


async def test_keys_are_spread_over_all_nodes(cluster):
    got = await collect(where.keyed([(n, n) for n in range(30)], key=0))
    assert len({pid for results in got.values() for pid in results}) == 3


async def test_a_source_is_asked_for_no_more_than_is_pending(cluster):
    taken = done = 0
    most = 0

    def source():
        nonlocal taken
        for number in range(3_000):
            taken += 1
            yield number % 7, number

    async for _, result in sums.keyed(source(), key=0, max_pending=100):
        done += not isinstance(result, tuple)
        most = max(most, taken - done)
    # Besides those: what a thread reads ahead, and results of a lane that wait to be read.
    assert done == 3_000
    assert most < 1_500


async def test_an_event_does_not_wait_for_others(cluster):
    async def source():
        for number in range(20):
            seen.clear()
            yield 1, number
            await seen.wait()  # the result comes with no other event behind it

    seen, got = asyncio.Event(), 0
    async with asyncio.timeout(HANG):
        async for _ in sums.keyed(source(), key=0):
            got += 1
            seen.set()
    assert got == 21


async def test_large_events_and_results(cluster):
    @stream_fn(mode="ray")
    async def echo(events):
        async for event in events:
            yield event

    source = [os.urandom(size) for size in (10, 100_000, 3_000_000, 1)]
    got = await collect(echo.keyed(source, key=lambda _: "all"))
    assert got == {"all": source}


async def test_run_is_wholly_on_one_node(cluster):
    pids = await where.run(range(100))
    assert len(pids) == 100
    assert len(set(pids)) == 1
    assert await sums.run([(0, n) for n in range(4)]) == [0, 1, 3, 6, ("end", 4)]


async def test_requests_and_sends(cluster):
    async with sums.keys() as keys, asyncio.timeout(HANG):
        answers = await asyncio.gather(*(keys.request(n % 10, (n % 10, n)) for n in range(200)))
        assert answers[9] == [9]
        assert answers[19] == [28]
        await keys.send("other", ("other", 5))
        assert await anext(aiter(keys)) == ("other", 5)


async def test_the_exception_of_a_function_names_its_key_and_its_node(cluster):
    with pytest.raises(LookupError, match="three") as caught:
        await collect(fails_at.keyed([("a", n) for n in range(10)], key=0))
    assert "'a'" in notes(caught.value)
    assert "on node " in notes(caught.value)
    assert "fails_at" in notes(caught.value)  # the traceback of the worker


async def test_dropping_a_key_that_fails_keeps_the_others(cluster):
    source = [(key, n) for n in range(6) for key in ("a", "b")]
    failed = []
    fn = fails_at.keyed(source, key=0, on_error=lambda key, error: failed.append(key))
    got = await collect(fn)
    assert sorted(set(failed)) == ["a", "b"]
    assert got["a"][:3] == [0, 1, 2]


async def test_a_worker_that_dies_is_told_with_its_node(cluster):
    @stream_fn(mode="ray")
    async def dies(events):
        async for _ in events:
            os.kill(os.getpid(), 9)
            yield

    with pytest.raises(WorkerDied, match="SIGKILL") as caught:
        await collect(dies.keyed([("a", 1)], key=0))
    assert not isinstance(caught.value, NodeDied)
    assert "on node " in notes(caught.value)


# Nodes that die, and nodes that come.


async def test_a_node_that_dies_is_named_with_its_keys(cluster):
    async def source():
        number = 0
        while True:
            yield number % 30, number
            number += 1

    with pytest.raises(NodeDied, match="is gone") as caught:
        await collect(sums.keyed(source(), key=0), at=(2_000,), what=killing(cluster))
    assert "sums[" in str(caught.value)
    assert "which are lost with it" in notes(caught.value)


@pytest.mark.parametrize("fn", [sums, saved], ids=["replayed", "with a state"])
async def test_with_replay_keys_go_on_elsewhere(cluster, fn):
    source = [(n % 60, n) for n in range(12_000)]
    fn = fn.options(recover="replay")
    got = await collect(fn.keyed(source, key=0), at=(2_000,), what=killing(cluster))
    assert got == expected(source)


async def test_a_node_that_comes_gets_new_keys(cluster):
    cluster.kill()
    await until(lambda: cluster.alive() == 2)

    async def source():
        number = 0
        while len(seen) < 3:
            yield number, number
            number += 1
            await asyncio.sleep(0)

    seen = set()
    async with asyncio.timeout(HANG):
        async for _, pid in where.keyed(source(), key=0, max_pending=200):
            seen.add(pid)
            if len(seen) == 2 and len(cluster.others) == 1:
                cluster.restore()


async def test_a_checkpoint_is_exact_when_a_node_dies(cluster, tmp_path):
    events = [{"k": n * 3 % 12, "v": n} for n in range(600)]
    source = Again({"p": events}, batch=10)

    async def pauses(number):
        if number == 30:
            await asyncio.to_thread(cluster.kill)
        while number % 4 == 3 and source.committed.get("p", -1) + 10 < source.at["p"]:
            await asyncio.sleep(0.001)

    source.pauses = pauses
    sink, fn = TakingBack(), sequence.options(mode="ray", recover="replay")
    async with asyncio.timeout(HANG):
        await fn.keyed(source, key="k").into(sink, checkpoint=tmp_path, checkpoint_every=0.01)
    assert by_key(sink.kept) == replayed.expected(events)


# Sessions.


async def test_a_session_lives_from_one_attachment_to_the_next(cluster):
    key = f"k-{os.getpid()}"
    async with asyncio.timeout(HANG):
        async with counted.open(key=key) as stream:
            assert [result async for result in stream.feed("ab")] == [(1, "a"), (2, "b")]
        async with counted.open(key=key) as stream:
            await stream.send("c")
            assert await stream.recv() == (3, "c")
            await stream.end()
        async with counted.open(key=key) as stream:
            await stream.send("d")
            assert await stream.recv() == (1, "d")


async def test_another_program_finds_the_session(cluster):
    key = f"shared-{os.getpid()}"
    async with asyncio.timeout(HANG):
        async with counted.open(key=key) as stream:
            await stream.send("here")
            assert await stream.recv() == (1, "here")
    code = f"""
import asyncio, ray
from ray_functions import counted
ray.init(address={cluster.address!r}, log_to_driver=False)
async def main():
    async with counted.open(key={key!r}) as stream:
        await stream.send("there")
        print(await stream.recv())
asyncio.run(main())
"""
    folder = os.path.dirname(sys.modules["ray_functions"].__file__)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.stdout.strip() == "(2, 'there')", done.stderr


async def test_a_session_has_one_attachment_at_a_time(cluster):
    key = f"one-{os.getpid()}"
    async with asyncio.timeout(HANG), counted.open(key=key):
        with pytest.raises(StreamBusy):
            await counted.options(overflow="error").open(key=key)


async def test_the_sessions_of_a_node_that_dies_begin_anew(cluster):
    names = [f"n{number}-{os.getpid()}" for number in range(12)]

    async def ask(key):
        async with counted.open(key=key) as stream:
            await stream.send(0)
            return (await stream.recv())[0]

    async with asyncio.timeout(HANG):
        assert await asyncio.gather(*map(ask, names)) == [1] * 12
        await asyncio.to_thread(cluster.kill)
        await until(lambda: cluster.alive() == 2)  # its actors answer for a moment
        counts = await asyncio.gather(*map(ask, names))
    assert set(counts) == {1, 2}  # those of the other nodes have gone on


# A service.


def deploy(cluster, *arguments):
    """The command, which runs `velo run` on nodes."""
    folder = os.path.dirname(sys.modules["ray_functions"].__file__)
    return subprocess.Popen(
        [sys.executable, "-m", "velo", "deploy", "ray", "--address", cluster.address, *arguments],
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


async def test_a_member_that_fails_starts_again(cluster, tmp_path):
    source, out = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    once = str(tmp_path / "once")
    source.write_text("".join(json.dumps({"n": n, "once": once}) + "\n" for n in range(5)))
    command = ("ray_functions.py:falls_once", "--input", str(source), "--output", str(out))
    member = deploy(cluster, "--nodes", "1", *command)
    said, _ = await asyncio.to_thread(member.communicate, timeout=HANG)
    assert member.returncode == 0, said
    assert "it starts again" in said
    assert "[1, node " in said
    assert out.read_text().split() == ["0", "1", "2", "3", "4"]


async def test_a_member_that_was_called_wrongly_does_not_start_again(cluster):
    member = deploy(cluster, "--nodes", "1", "ray_functions.py:falls_once", "--nonsense")
    said, _ = await asyncio.to_thread(member.communicate, timeout=HANG)
    assert member.returncode == 2, said
    assert "nonsense" in said
    assert "starts again" not in said


async def test_sigterm_drains_the_members(cluster, tmp_path):
    source, out, once = tmp_path / "in.ndjson", tmp_path / "out.ndjson", tmp_path / "once"
    once.touch()
    source.write_text(json.dumps({"n": 7, "once": str(once)}) + "\n")
    command = ("ray_functions.py:falls_once", "--follow", "--input", str(source))
    member = deploy(cluster, "--nodes", "1", *command, "--output", str(out))
    await until(lambda: out.exists() and out.read_text() == "7\n")
    member.send_signal(signal.SIGTERM)
    said, _ = await asyncio.to_thread(member.communicate, timeout=HANG)
    assert member.returncode == 128 + signal.SIGTERM, said
    assert out.read_text() == "7\n"


DRAINS = """
import asyncio, os, signal, sys
from velo._ray.cluster import connect
async def main():
    drained = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drained.set)
    await asyncio.to_thread(connect, sys.argv[1])
    os.kill(os.getpid(), signal.SIGTERM)
    await drained.wait()
    print("seconds until an alarm:", signal.getitimer(signal.ITIMER_REAL)[0])
asyncio.run(main())
"""


async def test_a_program_that_drains_is_not_aborted(cluster):
    command = [sys.executable, "-c", DRAINS, cluster.address]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.stdout == "seconds until an alarm: 0.0\n", done.stderr
    assert "SIGTERM received" not in done.stderr


async def test_members_need_a_group(cluster):
    member = deploy(cluster, "--nodes", "2", "ray_functions.py:falls_once", "--input", "in.ndjson")
    said, _ = await asyncio.to_thread(member.communicate, timeout=HANG)
    assert member.returncode == 2
    assert "group" in said


# What is refused.


class Local:
    """An object in this process in place of an actor."""

    def __init__(self, inner, **replaced):
        self._inner, self._replaced = inner, replaced

    def __getattr__(self, name):
        call = self._replaced.get(name) or getattr(self._inner, name)
        return SimpleNamespace(
            remote=lambda *args, **more: asyncio.ensure_future(call(*args, **more))
        )


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
    answers = [([], None), ray_library.load().exceptions.RayError, ([], 0)]

    async def news():
        answer = answers.pop(0)
        if isinstance(answer, tuple):
            return answer
        raise answer

    monkeypatch.setattr(deployment, "_start", lambda _: Local(None, news=news))
    monkeypatch.setattr(deployments, "alive", lambda: [NodeInfo("n", "node n", 1)])
    async with asyncio.timeout(HANG):
        assert await deployment._keep(1) == 0
    assert said == [(1, "node n", "velo: has gone (RayError)")]


async def test_a_member_that_no_node_can_start_is_given_up(monkeypatch):
    said = []
    deployment = Deployment([], ".", 1, 2, lambda *line: said.append(line))

    async def news():
        raise ray_library.load().exceptions.RayError("no velo there")

    monkeypatch.setattr(deployment, "_start", lambda _: Local(None, news=news))
    nodes = [NodeInfo(name, f"node {name}", 1) for name in "ab"]
    monkeypatch.setattr(deployments, "alive", lambda: nodes)
    monkeypatch.setattr(deployments, "_LONGEST_PAUSE", 0)
    async with asyncio.timeout(HANG):
        assert await deployment._keep(1) == 1
    why = "velo: did not start (no velo there)"
    assert said == [(1, f"node {name}", why) for name in "aba"]


async def test_a_stream_without_a_key_is_refused(cluster):
    with pytest.raises(VeloError, match=r"open\(key=...\)"):
        await sums.open()


async def test_sessions_without_a_count_of_them(cluster):
    with pytest.raises(ValueError, match="max_concurrent"):
        await counted.options(max_concurrent=2).open(key="a")


def test_without_ray_the_extra_is_named():
    code = """
import sys
sys.modules["ray"] = None
from velo import stream_fn
assert "ray" not in sys.argv
@stream_fn(mode="ray")
async def fn(events):
    async for event in events:
        yield event
fn.run_sync([1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert "pip install 'velo-stream[ray]'" in done.stderr


def test_importing_velo_does_not_import_ray():
    code = "import sys, velo, velo.cli.command; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG)


def test_the_mode_is_a_setting():
    assert StreamConfig(mode="ray").mode == "ray"
    with pytest.raises(ValueError, match='"ray"'):
        StreamConfig(mode="spark")
