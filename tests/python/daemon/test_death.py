"""Kill -9 of the supervisor: its streams flow on, and everybody knows what to do."""

import asyncio
import contextlib
import os
import signal

import pytest

import functions
from helpers import HANG, alive, pid_of, start_script, until, until_sync, write_script
from velo._process import clients
from velo._process.client import Client
from velo.errors import PoolError, WorkerDied

add = functions.running_sum.options(mode="process", workers=1)
pids = functions.pids.options(mode="process", workers=1)


async def lost():
    """Waits until this program has noticed."""
    known = clients._clients[id(asyncio.get_running_loop())]
    await until(lambda: all(c._connection.supervisor is None for c in known.by_address.values()))


async def test_streams_flow_on(daemon):
    async with add.open() as stream, pids.open() as other:
        feeding = stream.feed(range(20_000))
        total, expected = 0, 0
        async for total in feeding:
            if total == 0:
                daemon.kill()
        expected = sum(range(20_000))
        assert total == expected
        await lost()
        worker = await pid_of(other)
        # What needs no supervisor: another stream of a worker that is linked.
        assert await add.run([1, 2]) == [1, 3]
        # A worker's death is seen without it.
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=str(worker)):
            await asyncio.wait_for(other.recv(), HANG)
        with pytest.raises(PoolError, match="velo supervisor start"):
            await add.open()
        with pytest.raises(WorkerDied):
            await stream.recv()


async def test_a_stream_that_recovers_goes_to_the_next_supervisor(daemon_at):
    daemon = daemon_at("--workers", 2, "--idle-timeout", 1)
    async with add.options(recover="replay").open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        other = await pids.open()
        worker = await pid_of(other)
        daemon.kill()
        await lost()
        daemon_at("--workers", 2)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(other.recv(), HANG)
        await stream.send(2)
        assert await asyncio.wait_for(stream.recv(), HANG) == 3


async def test_a_stream_that_recovers_says_when_no_supervisor_is_left(daemon):
    async with pids.options(recover="replay").open() as stream:
        pid = await pid_of(stream)
        daemon.kill()
        await lost()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as info:
            await asyncio.wait_for(stream.recv(), HANG)
        assert isinstance(info.value.__cause__, PoolError)


async def test_the_next_supervisor_is_found_before_the_end_of_the_last_is_noticed(daemon_at):
    daemon = daemon_at("--workers", 2, "--idle-timeout", 1)
    async with add.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        daemon.kill()
        daemon_at("--workers", 2)  # the event loop has not run since
        fn = pids.options(workers=2, preload=["colorsys"])
        async with fn.open() as first, fn.open() as second:
            assert await pid_of(first) != await pid_of(second)
    # The old worker has nothing left to do for this program.
    assert await pids.run([0])


async def test_a_stream_with_a_limit_opens_before_the_end_is_noticed(daemon_at):
    daemon = daemon_at("--workers", 2, "--idle-timeout", 1)
    async with add.open():
        daemon.kill()  # the event loop has not run since
        assert await add.options(stall_timeout=HANG).run([1, 2]) == [1, 3]


async def test_a_stream_moves_before_the_end_is_noticed(daemon):
    fn = add.options(workers=2, recover="replay", stall_timeout=HANG)
    async with fn.open() as stream:
        await stream.send(1)
        assert await stream.recv() == 1
        client = clients.client_of(asyncio.get_running_loop())
        (left,) = client.links.values()
        async with pids.options(workers=2).open() as other:
            workers = [left.pid, await pid_of(other)]
        daemon.kill()  # the event loop has not run since
        assert client.send_away(left.number) == 1
        await until(lambda: left.end.streams == 0)
        await stream.send(2)
        assert await asyncio.wait_for(stream.recv(), HANG) == 3
    end(workers)


@pytest.mark.parametrize("leave", [Client._let_go, Client.give_up])
async def test_a_link_is_left_before_the_end_is_noticed(daemon, leave):
    async with pids.open() as stream:
        await pid_of(stream)
    client = clients.client_of(asyncio.get_running_loop())
    (link,) = client.links.values()
    daemon.kill()  # the event loop has not run since
    leave(client, link)
    assert not client.links
    end([link.pid])


def end(workers):
    """Ends workers without a stream, which would wait for their `--idle-timeout`."""
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_the_next_supervisor_is_found(daemon_at):
    daemon = daemon_at("--workers", 2, "--idle-timeout", 1)
    async with pids.open() as stream:
        old = await pid_of(stream)
        daemon.kill()
        await lost()
        following = daemon_at("--workers", 2)
        async with pids.open() as other:
            new = await pid_of(other)
            assert new != old
            assert new in [worker["pid"] for worker in following.status()["workers"]]
            assert await pid_of(stream) == old
    # The old worker has nothing left to do for this program.
    async with pids.options(workers=2).open() as other:
        assert await pid_of(other) != old


async def test_opens_under_way_do_not_hang(daemon, daemon_at):
    """Whoever waits for a worker that never comes is told."""
    zygote = daemon.status()["zygote"]
    os.kill(zygote, signal.SIGSTOP)
    opening = asyncio.ensure_future(pids.open())
    await until(lambda: daemon.status()["workers"])
    daemon.kill()
    with pytest.raises(PoolError, match="velo supervisor start"):
        await asyncio.wait_for(opening, HANG)
    with contextlib.suppress(ProcessLookupError):  # the death of its parent has let it go on
        os.kill(zygote, signal.SIGCONT)
    daemon_at()
    assert await pids.run([0])


PROGRAM = """
    import asyncio, os, sys
    from velo import stream_fn

    @stream_fn(mode="process", workers=2)
    async def pids(events):
        try:
            async for event in events:
                if event == "stuck":
                    while True:
                        pass
                yield os.getpid()
        finally:
            print("finally", flush=True)

    async def main():
        streams = [await pids.open() for _ in range(2)]
        for stream in streams:
            await stream.send(0)
            print(await stream.recv(), flush=True)
        for line in sys.stdin:
            if line == "stuck\\n":
                await streams[0].send("stuck")
            elif line == "close\\n":
                for stream in streams:
                    await stream.aclose()
            print("done", flush=True)

    asyncio.run(main())
"""


def started(tmp_path):
    program = start_script(write_script(tmp_path, PROGRAM), stdin=-1)
    workers = [int(program.stdout.readline()) for _ in range(2)]
    assert len(set(workers)) == 2
    return program, workers


def tell(program, word):
    program.stdin.write(f"{word}\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_their_last_client(tmp_path, daemon, busy):
    program, workers = started(tmp_path)
    if busy:
        tell(program, "stuck")
    daemon.kill()
    until_sync(lambda: True)
    assert all(map(alive, workers))
    program.kill()
    program.communicate()
    until_sync(lambda: not daemon.seen_alive(0), HANG, lambda: daemon.seen_alive(0))


@pytest.mark.parametrize("with_workers", [False, True])
def test_who_stands_still_ends_with_it_all_the_same(tmp_path, daemon, with_workers):
    """A zygote, and a worker, that are stopped when it dies are not left behind."""
    program, workers = started(tmp_path) if with_workers else (None, [])
    stopped = [daemon.status()["zygote"], *workers[:1]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    daemon.kill()
    if program is not None:
        program.kill()
        program.communicate()
    until_sync(lambda: not daemon.seen_alive(0), HANG, lambda: daemon.seen_alive(0))


def test_workers_serve_the_clients_that_are_left(tmp_path, daemon_at):
    daemon = daemon_at("--workers", 2)
    one, workers = started(tmp_path)
    other, same = started(tmp_path)
    assert sorted(workers) == sorted(same)
    daemon.kill()
    one.kill()
    one.communicate()
    tell(other, "close")
    assert all(map(alive, workers))
    other.kill()
    other.communicate()
    until_sync(lambda: not daemon.seen_alive(0), HANG, lambda: daemon.seen_alive(0))


def test_workers_end_when_nobody_has_a_stream(tmp_path, daemon_at):
    daemon = daemon_at("--workers", 2, "--idle-timeout", 0.4)
    program, workers = started(tmp_path)
    daemon.kill()
    tell(program, "close")
    until_sync(lambda: not any(map(alive, workers)))
    assert program.poll() is None
    program.kill()
    program.communicate()
