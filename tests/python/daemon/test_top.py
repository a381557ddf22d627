"""`velo top` in a terminal of its own."""

import asyncio
import contextlib
import signal
import subprocess
import sys

import pytest

from functions import running_sum
from helpers import HANG, environment, until
from terminal import top
from velo.errors import StreamClosed


@contextlib.asynccontextmanager
async def opened(count):
    """So many streams, of which each had one event more than the one before."""
    function = running_sum.options(mode="process", workers=1)
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(function.open()) for _ in range(count)]
        for number, stream in enumerate(streams):
            await stream.send_batch([1] * (number + 1))
            left = number + 1
            while left:
                left -= len(await stream.recv_batch())
            await until(
                lambda stream=stream: stream.metrics.queued == 0
            )  # its latency is known then
        yield streams


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
async def test_a_stream_is_found_and_ended(daemon, columns, rows):
    async with opened(40) as streams:
        with top(daemon, columns, rows) as terminal:
            await terminal.shows("40 streams", "↓events/s")
            terminal.press("e")
            most_first = [stream.name for stream in reversed(streams)]

            def whole(lines):
                shown = [line for line in lines if line.startswith("running_sum-")]
                return (
                    lines[0].startswith("velo ")
                    and lines[-1].startswith("r e b l a n sort")
                    and [line.split()[0] for line in shown] == most_first[: len(shown)]
                    and len(shown) >= min(40, rows - 8)
                    and any("µs" in line or "ms" in line for line in shown)
                )

            await terminal.shows("↓events ", streams[-1].name, when=whole)
            name = streams[17].name
            terminal.press("/")
            await terminal.shows("filter: ▏")
            terminal.press(f"{name}\r")
            await terminal.shows(f"only `{name}`: 1 of 40", without=[streams[-1].name])
            terminal.press("\x1b[Bx")
            await terminal.shows(f"end {name}? y / n")
            terminal.press("y")
            with pytest.raises(StreamClosed, match="ended by hand"):
                while True:
                    await streams[17].recv()
            await terminal.shows(f"ended {name}", "39 streams")
            terminal.press("q")
            assert await terminal.ends() == 0


async def test_keys_that_change_their_mind(daemon):
    async with opened(30) as streams:
        with top(daemon) as terminal:
            await terminal.shows("30 streams")
            terminal.press("n")
            await terminal.shows("↓stream")
            terminal.press("n")
            await terminal.shows("↑stream")
            terminal.press("x")
            await terminal.shows("choose a stream first")
            terminal.press("/no such\r")
            await terminal.shows("only `no such`: 0 of 30")
            terminal.press("\x1b")
            await terminal.shows(without=["only"])
            terminal.press("e\x1b[Bx")
            await terminal.shows(f"end {streams[-1].name}? y / n")
            terminal.press("n")
            await terminal.shows("30 streams", without=["? y / n"])
            terminal.press("\x1b[6~\x1b[6~x")  # pages down, beyond the first screen
            await terminal.shows("end running_sum-", without=[f"end {streams[-1].name}"])
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.ends() == 0
        assert all(stream.metrics.duration > 0 for stream in streams)
        await streams[0].send(1)
        assert await streams[0].recv() == 2


async def test_it_ends_with_its_supervisor_or_without_a_terminal(daemon):
    with top(daemon) as terminal:
        await terminal.shows("0 streams")
        await asyncio.to_thread(daemon.stop)
        await terminal.shows("velo: the supervisor at `")
        assert await terminal.ends() == 1
    command = [sys.executable, "-m", "velo", "top", "--socket", str(daemon.path)]
    told = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=HANG)
    assert told.returncode == 1
    assert "needs a terminal" in told.stderr
