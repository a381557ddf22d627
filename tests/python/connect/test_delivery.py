"""At least once, by `velo run` from server to server: killed, stopped, its worker killed.

The function passes every record on. So the output has every record of the input; each key's records
are there in order, but for those that come again after a kill.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from helpers import HANG

KEYS, RECORDS = 40, 6000
# Each key takes its time, so that a run is stopped in the middle.
APP = """
import asyncio
from velo import stream_fn

@stream_fn(buffer=64)
async def passes(events):
    async for event in events:
        await asyncio.sleep(0.005)
        yield event
"""


class Run:
    """A `velo run` from one place to another."""

    def __init__(self, folder, mode, source, sink, *more):
        app = folder / "app.py"
        app.write_text(APP)
        self.command = [sys.executable, "-m", "velo", "run", f"{app}:passes", "-k", "k"]
        self.command += ["-i", source, "-o", sink, "--mode", mode, "--no-progress"]
        self.command += ["--max-pending", "300", *more]
        self.log = folder / "log"
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log, stdout=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(HANG)
        self.process.kill()
        return self.process.wait()

    def check(self):
        assert self.process.poll() is None, self.log.read_text()


class OverKafka:
    def __init__(self, server):
        self.server = server
        self.input, self.output = server.topic(4), server.topic(4)
        place = f"kafka://{server.address}"
        # A static member takes its partitions up again at once.
        fast = "config.reconnect.backoff.max.ms=200&instance_id=one"
        self.source = f"{place}/{self.input}?group=g-{self.input}&{fast}"
        self.sink = f"{place}/{self.output}?config.reconnect.backoff.max.ms=200"
        self._consumer = None
        self._found = []

    def produce(self, values):
        for key in range(KEYS):
            mine = [value for value in values if json.loads(value)["k"] == key]
            self.server.produce(self.input, mine, str(key))

    def written(self):
        if self._consumer is None:
            self._consumer = self.server.reader(self.output)
        while messages := self._consumer.consume(1000, 0.2):
            self._found += [message.value() for message in messages if message.error() is None]
        return self._found

    def close(self):
        if self._consumer is not None:
            self._consumer.close()
        self.server.disconnect()


class OverRedis:
    def __init__(self, server):
        self.server = server
        self.client = server.client()
        number = os.urandom(4).hex()
        self.input, self.output = f"in-{number}", f"out-{number}"
        self.source = f"{server.url}/{self.input}?group=g&consumer=c&claim_after=30"
        self.sink = f"{server.url}/{self.output}"

    def produce(self, values):
        pipe = self.client.pipeline(transaction=False)
        for value in values:
            pipe.xadd(self.input, {"value": value})
        pipe.execute()

    def written(self):
        return [fields[b"value"] for _, fields in self.client.xrange(self.output)]

    def close(self):
        self.client.close()


@pytest.fixture(params=["kafka", "redis"])
def system(request):
    server = request.getfixturevalue(request.param)
    system = {"kafka": OverKafka, "redis": OverRedis}[request.param](server)
    yield system
    system.close()


def values():
    return [b'{"k":%d,"n":%d}' % (number % KEYS, number) for number in range(RECORDS)]


async def until_written(system, run, count):
    deadline = time.monotonic() + HANG
    while len(set(await asyncio.to_thread(system.written))) < count:
        run.check()
        assert time.monotonic() < deadline, run.log.read_text()
        await asyncio.sleep(0.02)


def check(system):
    found = [json.loads(value) for value in system.written()]
    assert {event["n"] for event in found} == set(range(RECORDS))
    for key in range(KEYS):
        firsts = list(dict.fromkeys(event["n"] for event in found if event["k"] == key))
        assert firsts == sorted(firsts)
    return len(found) - RECORDS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", ["inline", "process"])
async def test_killed_and_started_again(tmp_path, system, mode):
    system.produce(values())
    run = Run(tmp_path, mode, system.source, system.sink)
    chance = random.Random(os.urandom(8))
    for _ in range(3):
        run.start()
        before = len(set(system.written()))
        await until_written(system, run, min(before + chance.randrange(1, 1500), RECORDS - 500))
        run.kill()
    run.start()
    await until_written(system, run, RECORDS)
    run.stop()
    check(system)


async def test_stopped_and_started_again_doubles_nothing(tmp_path, system):
    system.produce(values())
    run = Run(tmp_path, "inline", system.source, system.sink, "--drain", "30")
    for _ in range(2):
        run.start()
        before = len(system.written())
        await until_written(system, run, min(before + 500, RECORDS))
        code = run.stop()
        # A run that had nothing to do may be stopped before it listens to signals.
        assert code == 128 + signal.SIGTERM or before == RECORDS, run.log.read_text()
    run.start()
    await until_written(system, run, RECORDS)
    run.stop()
    assert check(system) == 0


async def test_a_worker_that_is_killed_ends_the_run_and_loses_nothing(tmp_path, system):
    import psutil

    system.produce(values())
    run = Run(tmp_path, "process", system.source, system.sink, "--workers", "2")
    run.start()
    await until_written(system, run, 500)
    workers = [
        child
        for child in psutil.Process(run.process.pid).children(recursive=True)
        if "velo: worker" in " ".join(child.cmdline())
    ]
    assert workers
    workers[0].kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(run.process.wait, HANG)
    if run.process.returncode is None:  # no key ran in it: its keys were opened elsewhere
        run.kill()
    run.start()
    await until_written(system, run, RECORDS)
    run.stop()
    check(system)
