"""Runs the README's first program with an installed velo, in each mode that it has.

    python tools/quickstart.py

`tools/wheels.py` runs it in a bare environment of each Python, and so does CI on other systems.
"""

import asyncio
import sys

import velo
from velo import _core, stream_fn


@stream_fn
async def running_mean(events):
    """Give the mean of all values so far."""
    total = count = 0
    async for value in events:
        total, count = total + value, count + 1
        yield total / count


async def live(mode):
    """Use a live stream, and one copy for each key."""
    async with running_mean.options(mode=mode).open() as stream:
        await stream.send(5)
        assert await stream.recv() == 5
        assert [mean async for mean in stream.feed([7, 9])] == [6, 7]
    events = [("a", 1), ("b", 2)] * 3
    pairs = keyed.options(mode=mode).keyed(events, key=0)
    return sorted([pair async for pair in pairs])


@stream_fn
async def keyed(events):
    """Add up the values of one key."""
    total = 0
    async for _, value in events:
        total += value
        yield total


def main():
    """Run everything in the modes that the command line names, or in those that there are."""
    wanted = sys.argv[1:] or ["inline", *(["process"] if _core.PROCESS_MODE else [])]
    for mode in wanted:
        assert running_mean.options(mode=mode).run_sync([1, 2, 3, 4]) == [1.0, 1.5, 2.0, 2.5]
        expected = [("a", 1), ("a", 2), ("a", 3), ("b", 2), ("b", 4), ("b", 6)]
        assert asyncio.run(live(mode)) == expected
        print(f"velo {velo.__version__}, Python {sys.version.split()[0]}: {mode} mode works")


if __name__ == "__main__":
    main()
