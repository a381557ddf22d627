"""Spinning and naps: what a client does where workers could use its core."""

import asyncio
import time

import functions
from helpers import run_script

ONE_CORE = """
    import asyncio, os, sys

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    sys.path.insert(0, sys.argv[1])
    import functions
    from velo import _links

    naps = 0
    nap = _links._nap

    def counted(*arguments):
        global naps
        naps += 1
        nap(*arguments)

    _links._nap = counted

    async def main():
        async with functions.{function}.options(mode="process").open() as stream:
            while True:
                before = naps
                async for _ in stream.feed(range({events})):
                    pass
                if {enough}:
                    return

    asyncio.run(main())
"""


def on_one_core(tmp_path, function, events, enough):
    script = ONE_CORE.format(function=function, events=events, enough=enough)
    code, _, errors = run_script(tmp_path, script, functions.__file__.rpartition("/")[0])
    assert code == 0, errors


def test_bulk_transfer_does_not_nap_while_its_worker_has_nothing_to_do(tmp_path):
    # More than a hundred times as many events as the buffer holds, and the client never slept on
    # although they were done.
    on_one_core(tmp_path, "echo", 30_000, "naps == before")


def test_bulk_transfer_naps_while_its_worker_computes(tmp_path):
    on_one_core(tmp_path, "computes", 1_000, "naps > before")


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
