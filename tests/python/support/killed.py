"""A program that moves records from one URL to another by key, and is killed in the middle."""

import asyncio
import os
import subprocess
import sys

from helpers import HANG

__all__ = ["move", "move_and_kill"]

_PROGRAM = """
import asyncio
import sys

from velo import stream_fn
from velo.connect.urls import endpoint_of


@stream_fn
async def same(events):
    async for event in events:
        yield event


async def main():
    source, sink = map(endpoint_of, sys.argv[1:])
    figures = await same.keyed(source, key="k").into(sink, commit_every=0.05)
    print(figures.results)


asyncio.run(main())
"""


def _start(source, sink):
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, source, sink], stdout=subprocess.PIPE, text=True,
        env=dict(os.environ),
    )  # fmt: skip


async def move(source, sink):
    """Run the program to its end; the number of its results."""
    process = _start(source, sink)
    out, _ = await asyncio.to_thread(process.communicate, timeout=2 * HANG)
    assert process.returncode == 0
    return int(out)


async def move_and_kill(source, sink, count, enough):
    """Kill the program once `await count()` results are `enough`."""
    process = _start(source, sink)
    try:
        async with asyncio.timeout(HANG):
            while await count() < enough:
                assert process.poll() is None
                await asyncio.sleep(0.002)
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
