"""A terminal for tests, with a command in it."""

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time

import pyte

from helpers import environment


class Terminal:
    """A command in a pseudo-terminal of this size, and what it shows."""

    def __init__(self, command, columns, rows):
        self._line, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.lock = threading.Lock()  # whose owner finds the screen as it is
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
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        """Draw what the command writes: a terminal that nothing reads takes no more of it."""
        with contextlib.suppress(OSError):  # the command has ended
            while select.select([self._line], [], []):
                with self.lock:  # what is read is drawn before anybody looks
                    self._stream.feed(os.read(self._line, 1 << 16))

    def _shown(self):
        """The lines of the screen; None while there is more to draw."""
        with self.lock:
            line = select.poll()
            line.register(self._line, select.POLLIN)
            more = any(events & select.POLLIN for _, events in line.poll(0))
            return None if more and self._reader.is_alive() else self.screen.display

    def press(self, keys):
        os.write(self._line, keys.encode())

    async def shows(self, *texts, without=(), when=lambda lines: True):
        """Waits for a screen with these texts, and without those; returns its lines.

        It may be looked at when only half of it is drawn: `when` says what else is waited for.
        """
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if (lines := self._shown()) is not None:
                shown = "\n".join(lines)
                there = all(text in shown for text in texts)
                if there and not any(text in shown for text in without) and when(lines):
                    return lines
            await asyncio.sleep(0.02)
        with self.lock:
            shown = "\n".join(self.screen.display)
        raise AssertionError(f"not shown: {texts} without {without} in\n{shown}")

    async def ends(self):
        """Waits for the end of the command, and returns its exit code."""
        deadline = time.monotonic() + 30
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, "the command goes on"
            await asyncio.sleep(0.02)
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._line)


@contextlib.contextmanager
def top(daemon, columns=80, rows=24):
    """`velo top` of a supervisor, in a terminal of this size."""
    terminal = Terminal(["top", "--interval", "0.1", "--socket", daemon.path], columns, rows)
    try:
        yield terminal
    finally:
        terminal.close()
