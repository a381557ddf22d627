"""A terminal for tests, with a command in it."""

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pyte

from helpers import environment


class Terminal:
    """A command in a pseudo-terminal of this size, and what it shows."""

    def __init__(self, command, columns, rows):
        self._line, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(self._line, False)
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        env = environment(TERM="xterm-256color")
        for size in ("COLUMNS", "LINES"):  # they say more than the terminal itself
            env.pop(size, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "velo", *map(str, command)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            start_new_session=True,
        )
        os.close(theirs)

    def press(self, keys):
        os.write(self._line, keys.encode())

    async def shows(self, *texts, without=(), when=lambda lines: True):
        """Waits for a screen with these texts, and without those; returns its lines.

        It may be looked at when only half of it is drawn: `when` says what else is waited for.
        """
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, OSError):
                self._stream.feed(os.read(self._line, 1 << 16))
                continue  # a screen is looked at when all of it is there
            shown = "\n".join(self.screen.display)
            there = all(text in shown for text in texts)
            if there and not any(text in shown for text in without) and when(self.screen.display):
                return self.screen.display
            await asyncio.sleep(0.02)
        raise AssertionError(f"not shown: {texts} without {without} in\n{shown}")

    async def ends(self):
        """Waits for the end of the command, and returns its exit code.

        What it still writes is read meanwhile: a terminal that nothing reads takes no more of it.
        """
        deadline = time.monotonic() + 30
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, "the command goes on"
            with contextlib.suppress(BlockingIOError, OSError):
                self._stream.feed(os.read(self._line, 1 << 16))
                continue
            await asyncio.sleep(0.02)
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._line)


@contextlib.contextmanager
def top(daemon, columns=80, rows=24):
    """`velo top` of a supervisor, in a terminal of this size."""
    terminal = Terminal(["top", "--interval", "0.1", "--socket", daemon.path], columns, rows)
    try:
        yield terminal
    finally:
        terminal.close()
