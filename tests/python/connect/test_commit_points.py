"""Sinks with a commit point of their own, whose program is killed before, in and after a commit.

The program goes on behind the epoch that the sink tells it, as a checkpoint does. So what readers
see is each result once, however often it was killed.
"""

import json
import os
import subprocess
import sys

import pytest

PER_TICK = 700

# Writes the ticks up to the last one, and kills itself at a place in the tick that it is told.
PROGRAM = """
import asyncio, os, random, signal, sys
from velo.connect.urls import endpoint_of

async def main(url, name, known, last, place, dies_in):
    def at(here):
        if here == place and epoch == int(dies_in):
            os.kill(os.getpid(), signal.SIGKILL)
    sink = endpoint_of(url)
    epoch = begun = await sink.begin(name, int(known))
    print(begun, flush=True)
    while epoch < int(last):
        epoch += 1
        numbers = range((epoch - 1) * PER_TICK, epoch * PER_TICK)
        await sink.write([("k", {"number": number}) for number in numbers])
        at("written")
        await sink.flush()
        at("flushed")
        commit = asyncio.ensure_future(sink.commit(epoch, {("in", 0): epoch}))
        while not commit.done():
            await asyncio.sleep(0.001)
            if random.random() < 0.2:
                at("committing")
        await commit
        at("committing")
        at("committed")
    await sink.close()

asyncio.run(main(*sys.argv[1:]))
""".replace("PER_TICK", str(PER_TICK))


class OverKafka:
    def __init__(self, server):
        self.server = server
        self.topic = self.name = server.topic()
        self.url = f"kafka://{server.address}/{self.topic}?config.reconnect.backoff.max.ms=200"

    def numbers(self, count):
        messages = self.server.read(self.topic, count)
        return [json.loads(message.value())["number"] for message in messages]

    def close(self):
        self.server.disconnect()


class OverPostgres:
    def __init__(self, server):
        import psycopg

        self.name = f"t{os.urandom(6).hex()}"
        self.connection = psycopg.connect(server.dsn(), autocommit=True)
        self.connection.execute(f"create table {self.name} (n bigserial primary key, number int)")
        login = f"{server.admin}:{server.admin_password}"
        self.url = f"postgres://{login}@127.0.0.1:{server.port}/postgres/{self.name}"

    def numbers(self, count):
        query = f"select number from {self.name} order by n"
        return [number for (number,) in self.connection.execute(query).fetchall()]

    def close(self):
        self.connection.close()


@pytest.fixture(params=["kafka", "postgres"])
def system(request):
    server = request.getfixturevalue(request.param)
    system = {"kafka": OverKafka, "postgres": OverPostgres}[request.param](server)
    yield system
    system.close()


@pytest.mark.parametrize("place", ["written", "flushed", "committing", "committed"])
def test_a_killed_program_neither_loses_nor_doubles_a_tick(system, place):
    def run(known, last, place="", dies_in=0):
        arguments = [system.url, system.name, known, last, place, dies_in]
        program = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True
        )
        assert (program.returncode != 0) == bool(place), program.stderr
        assert "Traceback" not in program.stderr
        return int(program.stdout)

    # The checkpoint has stored an epoch before the sink commits it.
    assert run(0, 3, place, dies_in=1) == 0
    begun = run(1, 3, place, dies_in=3)
    assert begun in {"committed": [1], "committing": [0, 1]}.get(place, [0])
    begun = run(3, 4)
    assert begun in {"committed": [3], "committing": [2, 3]}.get(place, [2])
    assert system.numbers(4 * PER_TICK) == list(range(4 * PER_TICK))
