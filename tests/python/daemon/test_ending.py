"""How a standalone supervisor ends, and what it leaves: nothing."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

import functions
from helpers import HANG, environment, until, until_sync
from standalone import ask
from velo import _core, stream_fn
from velo.errors import PoolError, VeloError

echo = functions.echo.options(mode="process", workers=1)


@stream_fn(mode="process", workers=1)
async def tidy(events):
    try:
        async for event in events:
            yield event
    finally:
        open(event, "w").close()


def left_of(daemon):
    """What is there that should not be."""
    return [daemon.path.exists(), *daemon.seen_alive(0)]


def test_stop_leaves_nothing(daemon_at):
    daemon = daemon_at("--workers", "1:2")
    until_sync(lambda: [w for w in daemon.status()["workers"] if w["pid"]])
    assert daemon.stop() == 0
    assert "STOPPING=1" in daemon.hear()
    assert not any(left_of(daemon))


async def test_drain_lets_streams_end_and_takes_no_new_ones(daemon):
    async with echo.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        ask(daemon.path, lambda line: line.drain(), _core.Report.Done)
        with pytest.raises(PoolError, match="draining"):
            await echo.open()
        assert daemon.status()["draining"]
        async for result in stream.feed(range(1000)):
            last = result
        assert last == 999
    await until(lambda: daemon.process.poll() == 0)
    assert not any(left_of(daemon))


async def test_streams_that_take_too_long_are_cancelled(tmp_path, daemon):
    mark = tmp_path / "mark"
    stream = await tidy.open()
    await stream.send(str(mark))
    await stream.recv()
    began = time.monotonic()
    ask(daemon.path, lambda line: line.drain(0.2), _core.Report.Done)
    with pytest.raises(Exception):
        await asyncio.wait_for(stream.recv(), HANG)
    await until(lambda: daemon.process.poll() == 0)
    assert time.monotonic() - began >= 0.2
    assert mark.exists(), "its `finally` block has run"
    with contextlib.suppress(VeloError):
        await stream.aclose()


async def test_a_second_signal_ends_it_at_once(daemon):
    stream = await functions.echo.options(mode="process", workers=1).open()
    await stream.send(1)
    await stream.recv()
    daemon.status()
    daemon.process.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in daemon.hear()
    daemon.process.send_signal(signal.SIGINT)
    await until(lambda: daemon.process.poll() is not None)
    await until(lambda: not any(left_of(daemon)))
    with contextlib.suppress(VeloError):
        await stream.aclose()


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(daemon, daemon_at):
    daemon.kill()
    assert daemon.path.exists()
    following = daemon_at()
    assert following.status()["pid"] == following.pid
    second = subprocess.run(
        [sys.executable, "-m", "velo", "supervisor", "start", "--socket", str(daemon.path)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
        check=False,
    )
    assert second.returncode == 1
    assert f"(pid `{following.pid}`) already serves" in second.stderr
    assert following.status()["pid"] == following.pid, "it was not disturbed"


def test_the_socket_of_another_supervisor_is_left_alone(daemon):
    """Whoever has taken the path over keeps it."""
    daemon.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.path))
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(HANG) == 0
        assert daemon.path.exists()


async def test_what_functions_leave_behind_is_collected(daemon):
    """A grandchild whose parent has ended: nobody else could."""

    @stream_fn(mode="process", workers=1)
    async def orphan(events):
        async for _ in events:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                if grandchild := os.fork():
                    os.write(writing, str(grandchild).encode())
                os._exit(0)
            os.waitpid(child, 0)
            yield int(os.read(reading, 100))

    grandchild = (await orphan.run([0]))[0]
    await until(lambda: not psutil.pid_exists(grandchild))


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine makes no process namespaces",
)
def test_as_the_first_process_of_a_container(daemon_at):
    daemon = daemon_at("--workers", "1:1", prefix=NAMESPACE)
    [first] = psutil.Process(daemon.pid).children()
    until_sync(lambda: [w for w in daemon.status()["workers"] if w["pid"]])
    assert daemon.status()["pid"] == 1
    first.send_signal(signal.SIGTERM)
    assert daemon.process.wait(HANG) == 0
    assert not any(left_of(daemon))
