"""`velo top` in a terminal of its own."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from functions import running_sum
from helpers import environment
from velo.errors import StreamClosed


class Terminal:
    """`velo top` in a pseudo-terminal of this size."""

    def __init__(self, daemon, rows, columns):
        self._screen, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(self._screen, False)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "velo", "top", "--interval", "0.1", "--socket", daemon.path],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(TERM="xterm-256color"),
            start_new_session=True,
        )
        os.close(theirs)

    def press(self, keys):
        os.write(self._screen, keys.encode())

    async def shows(self, *texts, without=()):
        """Waits for a screen with these texts."""
        deadline = time.monotonic() + 20
        seen = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, OSError):
                seen += os.read(self._screen, 1 << 16).decode(errors="replace")
            screens = seen.split("\x1b[H")
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screens[-2]) if screens[2:] else ""
            if all(text in plain for text in texts) and not any(text in plain for text in without):
                return plain
            await asyncio.sleep(0.02)
        raise AssertionError(f"not shown: {texts} in {plain!r}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (50, 200)])
async def test_a_stream_is_found_and_ended(daemon, rows, columns):
    function = running_sum.options(mode="process", workers=1)
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(function.open()) for _ in range(40)]
        for stream in streams:
            await stream.send(1)
        terminal = Terminal(daemon, rows, columns)
        stack.callback(terminal.close)
        plain = await terminal.shows("40 streams", "by events/s", streams[0].name)
        assert max(map(len, plain.splitlines())) <= columns
        name = streams[17].name
        terminal.press("/")
        await terminal.shows("filter: _")
        terminal.press(f"{name}\r")
        await terminal.shows(f"only `{name}`", name, without=[f"{streams[3].name} "])
        terminal.press("\x1b[B")
        terminal.press("x")
        await terminal.shows(f"end {name}? y/n")
        terminal.press("y")
        with pytest.raises(StreamClosed, match="ended by hand"):
            while True:
                await streams[17].recv()
        await terminal.shows(f"ended {name}", "39 streams")
        terminal.press("q")
        assert await asyncio.to_thread(terminal.process.wait, 20) == 0
