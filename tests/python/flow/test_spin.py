"""Spinning and naps: what a client does where workers could use its core."""

import asyncio
import os
import textwrap
import time

import pytest

import functions
from helpers import run_script

PROGRAM = """
    import asyncio, os, sys

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
    sys.path.insert(0, sys.argv[1])
    import functions

    naps = 0

    def counted(nap_over):
        def count():
            global naps
            naps += 1
            nap_over()

        return count

    async def main():
        loop = asyncio.get_running_loop()
        add = loop.add_reader

        def add_reader(fd, call, *arguments):
            add(fd, counted(call) if call.__name__ == "nap_over" else call, *arguments)

        loop.add_reader = add_reader
        async with functions.{function}.options(mode="process").open() as stream:
            {body}

    asyncio.run(main())
"""


UNTIL = """
while True:
    before = naps
    async for _ in stream.feed(range({events})):
        pass
    if {enough}:
        return
"""

WAITS = """
async def feed():
    async for _ in stream.feed(range(1_000)):
        pass

task = asyncio.create_task(feed())
while stream.metrics.results < 300:
    await asyncio.sleep(0.01)
before = naps
await asyncio.sleep(0.5)
task.cancel()
await asyncio.sleep(0.5)
assert 5 < before < 300 and naps - before < 20, (before, naps)
sys.exit()  # leaving the block by an exception does not wait for the function
"""


def run(tmp_path, body, function, cores):
    body = textwrap.indent(body.strip(), " " * 12).strip()
    program = PROGRAM.format(function=function, cores=cores, body=body)
    code, _, errors = run_script(tmp_path, program, functions.__file__.rpartition("/")[0])
    assert code == 0, errors


def until(tmp_path, enough, function, events, cores=1):
    """Feed so many events again and again until the naps in between are as they should be."""
    run(tmp_path, UNTIL.format(events=events, enough=enough), function, cores)


def test_bulk_transfer_does_not_nap_while_its_worker_has_nothing_to_do(tmp_path):
    # More than a hundred times as many events as the buffer holds, and the client never slept on
    # although they were done.
    until(tmp_path, "naps == before", "echo", 30_000)


def test_bulk_transfer_naps_while_its_worker_computes(tmp_path):
    # Once for several of what it sends: its worker is not to run dry.
    until(tmp_path, "5 < naps - before < 500", "computes", 1_000)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_it_naps_also_where_a_core_is_free(tmp_path):
    until(tmp_path, "5 < naps - before < 500", "dawdles", 1_000, cores=2)


def test_nobody_naps_for_long_while_a_worker_waits(tmp_path):
    run(tmp_path, WAITS, "dawdles_and_waits", cores=2)


async def test_a_stream_that_is_worth_spinning_for_lets_other_tasks_have_their_turn():
    turns = 0

    async def sibling():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with functions.echo.options(mode="process").open() as stream:
        task = asyncio.create_task(sibling())
        begin = time.monotonic()
        while turns < 100:
            await stream.send(1)
            assert await stream.recv() == 1
            assert time.monotonic() - begin < 30, f"only {turns} turns"
        task.cancel()
