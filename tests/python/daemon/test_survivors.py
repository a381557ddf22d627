"""Clients that die one after another, at every stage of their life, among others that live: each
takes its own with it, to the last one, and nothing else."""

import json
import os
import signal

import psutil
import pytest

import functions
from helpers import HANG, start_script, until_sync, write_script
from standalone import answer
from velo import _core

STREAMS = 3

PROGRAM = """
    import asyncio, os, sys
    from velo import stream_fn
    from velo._process import clients

    @stream_fn(mode="process", workers=2)
    async def add(events):
        total = 0
        async for event in events:
            while event == "stuck":
                await asyncio.sleep(1)
            total += event
            yield total

    async def main():
        stage = sys.argv[1]
        streams = []
        if stage == "connected":
            client = clients.client_of(asyncio.get_running_loop())
            client._connection.connect()
            await client._connection.greet()
        if stage == "used":
            async with add.open() as stream:
                await stream.send(1)
                await stream.recv()
        if stage in ("open", "in flight", "at work", "stopped"):
            streams = [await add.open() for _ in range(3)]
            for stream in streams:
                await stream.send(0)
                await stream.recv()
        if stage == "in flight":
            for stream in streams:  # results that nobody takes
                await stream.send_batch(range(20))
        if stage == "at work":
            for stream in streams:
                await stream.send("stuck")
        print("there", flush=True)
        for line in sys.stdin:
            for stream in streams:
                await stream.send(int(line))
                print(await stream.recv(), flush=True)

    asyncio.run(main())
"""


class Program:
    """One that has come as far as its stage."""

    def __init__(self, tmp_path, stage):
        path = write_script(tmp_path, PROGRAM)
        self.process = start_script(path, stage, stdin=-1)
        said = self.process.stdout.readline()
        assert said == "there\n", self.process.communicate()

    def add(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return [int(self.process.stdout.readline()) for _ in range(STREAMS)]

    def kill(self):
        self.process.kill()
        self.process.communicate()


def held(daemon):
    """What the supervisor has of its clients: their links, their streams, its descriptors.

    One connection is the test's, which asks. It is open until the descriptors are counted, and
    those with which it asked before are gone by then.
    """
    daemon.status()  # which remembers the processes that are to end with it
    lines = []

    def alone():
        lines[:] = [_core.SupervisorClient.connect(str(daemon.path))]
        state.update(
            json.loads(answer(lines[0], lambda line: line.status(), _core.Report.Status).text)
        )
        return sum(client["pid"] == os.getpid() for client in state["clients"]) == 1

    state = {}
    until_sync(alone, HANG, lambda: state)
    workers = state["workers"]
    return {
        "clients": len(state["clients"]) - 1,
        "links": sum(worker["links"] for worker in workers),
        "streams": sum(worker["residents"] for worker in workers),
        "workers": len(workers),
        "descriptors": psutil.Process(daemon.pid).num_fds(),
    }


@pytest.mark.parametrize("stage", ["connected", "used", "open", "in flight", "at work", "stopped"])
def test_each_takes_its_own_and_nothing_else(tmp_path, daemon_at, stage):
    daemon = daemon_at("--workers", 2, "--idle-timeout", 1000)
    survivors = [Program(tmp_path, "open") for _ in range(2)]
    totals = 0
    counts = [held(daemon)]
    victims = []
    for _ in range(3):
        victims.append(Program(tmp_path, stage))
        counts.append(held(daemon))
    worker_pids = sorted(worker["pid"] for worker in daemon.status()["workers"])
    assert [c["clients"] for c in counts] == [2, 3, 4, 5]
    streams = STREAMS if stage not in ("connected", "used") else 0
    assert [c["streams"] for c in counts] == [6 + n * streams for n in range(4)]
    while victims:
        victim = victims.pop()
        if stage == "stopped":
            victim.process.send_signal(signal.SIGSTOP)
        victim.kill()
        counts.pop()
        until_sync(lambda: held(daemon) == counts[-1], HANG, lambda: (held(daemon), counts[-1]))
        totals += 7
        for survivor in survivors:
            assert survivor.add(7) == [totals] * STREAMS
    assert sorted(worker["pid"] for worker in daemon.status()["workers"]) == worker_pids
    for survivor in survivors:
        survivor.kill()
    until_sync(lambda: held(daemon)["streams"] == 0, HANG, lambda: held(daemon))


async def test_a_new_client_is_served_after_them(tmp_path, daemon_at):
    daemon = daemon_at("--workers", 1)
    for stage in ("connected", "used", "open", "at work"):
        Program(tmp_path, stage).kill()
    until_sync(lambda: held(daemon)["clients"] == 0, HANG, lambda: held(daemon))
    assert await functions.echo.options(mode="process", workers=1).run([1, 2]) == [1, 2]
