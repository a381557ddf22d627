"""One `velo run` on one node, and the actor that runs it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import time

__all__ = ["Member", "pause_after"]

_PR_SET_PDEATHSIG = 1
# Exit codes behind which another start would do the same: done, called wrongly, a position that is
# gone, no such topic, a refused user.
_FINAL = (0, 2, 65, 66, 77)
# So many lines wait to be fetched; older ones are dropped.
_MOST_LINES = 1000
# A line that is longer is shown as several; bytes.
_LONGEST_LINE = 64 * 1024
# A call for lines waits so long for some.
_HOLD = 5.0
# A process that is told to stop has so many seconds for it, beyond its own `--drain`.
_STOP = 60.0
# The output is read for this time after its process has ended; seconds. A process that this one has
# started may keep it open.
_LAST_OUTPUT = 1.0


def pause_after(failures: int) -> float:
    """Return the seconds before the next start, after so many failures in a row."""
    return min(2.0 ** (failures - 1), 30.0) if failures else 0.0


class Member:
    """Runs one command on this node, and again when it fails. Its methods are called by Ray.

    Args:
        command: The arguments of `velo`.
        folder: Where it runs, if that folder exists here.
        restarts: How often it is started again; None: always.

    """

    def __init__(self, command: list[str], folder: str, restarts: int | None) -> None:
        self._command = [sys.executable, "-m", "velo", *command]
        self._folder = folder if os.path.isdir(folder) else None
        self._restarts = restarts
        self._lines: collections.deque[str] = collections.deque(maxlen=_MOST_LINES)
        self._news = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._stops = asyncio.Event()
        self._code: int | None = None
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        failures = 0
        try:
            while True:
                began = time.monotonic()
                code = await self._once()
                if self._stops.is_set() or code in _FINAL:
                    break
                failures = 0 if time.monotonic() - began > 60 else failures + 1
                if self._restarts is not None and failures > self._restarts:
                    break
                delay = pause_after(failures)
                self._say(f"velo: `velo run` has ended with code {code}; it starts again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stops.wait(), delay)
                    break
            self._code = code
        except Exception as error:
            self._say(f"velo: {error}")
            self._code = 1
        finally:
            self._news.set()

    async def _once(self) -> int:
        loop, output = asyncio.get_running_loop(), asyncio.StreamReader()
        # A pipe of our own: some versions of asyncio take a process for running while one of
        # theirs is open.
        read, write = os.pipe()
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read, "rb", 0)
        )
        reading = loop.create_task(self._read(output))
        try:
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    *self._command,
                    cwd=self._folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write,
                    stderr=asyncio.subprocess.STDOUT,
                    preexec_fn=_ends_with_its_parent,
                )
            finally:
                os.close(write)
            if self._stops.is_set():
                await self.stop()
            code = await process.wait()
            await asyncio.wait({reading}, timeout=_LAST_OUTPUT)
            return code
        finally:
            reading.cancel()
            pipe.close()

    async def _read(self, output: asyncio.StreamReader) -> None:
        line = b""
        while piece := await output.read(_LONGEST_LINE):
            *whole, line = (line + piece).split(b"\n")
            for each in whole:
                self._say(each)
            if len(line) >= _LONGEST_LINE:
                self._say(line)
                line = b""
        if line:
            self._say(line)

    def _say(self, line: str | bytes) -> None:
        text = line if isinstance(line, str) else line.decode("utf-8", "replace").rstrip()
        self._lines.append(text)
        self._news.set()

    async def pid(self) -> int | None:
        """Return the process id of the command."""
        return None if self._process is None else self._process.pid

    async def news(self) -> tuple[list[str], int | None]:
        """Wait for output, a while at most: lines, and the exit code once it has ended for good."""
        if not self._lines and self._code is None:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOLD):
                    await self._news.wait()
        lines = list(self._lines)
        self._lines.clear()
        return lines, self._code

    async def stop(self) -> None:
        """Tell the command to drain, and do not start it again."""
        self._stops.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            patience = _drain_of(self._command) + _STOP
            asyncio.get_running_loop().call_later(patience, _kill, process)


def _drain_of(command: list[str]) -> float:
    """Return the seconds of the last `--drain` of a command; 0 where it has none."""
    drain = 0.0
    for option, value in itertools.pairwise([*command, ""]):
        name, equals, after = option.partition("=")
        if name == "--drain":
            with contextlib.suppress(ValueError):  # `velo run` refuses it
                drain = float(after if equals else value)
    return drain


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def _ends_with_its_parent() -> None:
    """Have the kernel kill this process when the actor dies: nobody else would end it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
