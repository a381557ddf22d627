"""`mode="ray"`: the same results on several nodes, and exact ones when nodes die."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

import replayed
from helpers import HANG, notes, until
from key_sums import collect, expected
from ray_cluster import INSTALLED
from ray_functions import counted, fails_at, saved, sums, where
from replayed import Again, TakingBack, by_key, sequence
from velo import StreamConfig, stream_fn
from velo.errors import NodeDied, StreamBusy, VeloError, WorkerDied

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
