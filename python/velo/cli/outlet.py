"""Writes to a file in a thread, so that a slow reader of the file never blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from velo.cli.wake import Wake

__all__ = ["Outlet"]

# From this number of waiting bytes on, callers of `put` should wait for `room`.
_ROOM = 1024 * 1024
# The bytes of one write: the bytes behind them can still be dropped.
_PIECE = 256 * 1024


class _Writable(Protocol):
    def write(self, data: Any, /) -> int | None: ...
    def close(self) -> None: ...


class Outlet:
    """A file, and the thread that writes to it.

    The thread is a daemon: while it is blocked in a pipe, the program can still end. Any thread may
    call `put`. The coroutines belong to the event loop that awaits one of them first.

    Args:
        file: The file.
        fd: The descriptor of a file that may be a pipe. The thread notices at once when the
            pipe's reader leaves, and waits for a pipe that does not block.

    Attributes:
        error: The reason why the file takes no more; None before that.
        on_error: Called in the event loop when `error` is set.
        cut: Called in the thread with the number of bytes of an incomplete line that were written.

    """

    def __init__(self, file: _Writable, fd: int | None, *, name: str = "velo run writer") -> None:
        self.error: OSError | None = None
        self.on_error: Callable[[], object] | None = None
        self.cut: Callable[[int], object] | None = None
        self._file = file
        self._fd = None if fd is None or stat.S_ISREG(os.fstat(fd).st_mode) else fd
        self._name = name
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self._closing = self._closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: list[asyncio.Future[None]] = []
        # Never closed: the thread may outlive everything else.
        self._wake = Wake()

    @property
    def size(self) -> int:
        """The number of bytes that wait to be written."""
        return self._size

    @property
    def full(self) -> bool:
        """Whether callers of `put` should wait for `room`."""
        return self._size > _ROOM and self.error is None

    def put(self, data: bytes) -> None:
        """Queue bytes to be written."""
        with self._lock:
            self._pieces.append(data)
            self._size += len(data)
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._wake.ring()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call `on_error` in this event loop from now on, also when the reader leaves."""
        self._loop = loop
        if self._fd is not None:
            self._start()

    async def room(self) -> None:
        """Wait until there is room, or an error."""
        await self._wait_until(lambda: not self.full)

    async def emptied(self) -> None:
        """Wait until all is written, or an error."""
        await self._wait_until(lambda: not self._size or self.error is not None)

    async def close(self) -> None:
        """Wait until all is written, and the file is closed; or an error."""
        self._closing = True
        self._start()
        await self._wait_until(lambda: self._closed)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        while True:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            if condition():  # after the waiter was added: the thread may set it at any moment
                return
            await waiter

    def flush(self, seconds: float) -> None:
        """Wait, outside of an event loop, until all is written, for at most the given seconds."""
        deadline = time.monotonic() + seconds
        while self._size and self.error is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _tell(self, what: Callable[[], object]) -> None:
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits
                loop.call_soon_threadsafe(what)

    def _work(self) -> None:
        try:
            while self.error is None:
                data = self._next()
                if data is None:
                    break
                self._write(data)
                self._tell(self._changed)
            try:
                self._file.close()
            except OSError as error:  # compressed data that is left, or a disk behind a network
                self._fail(error)
        finally:
            self._closed = True
            self._tell(self._changed)

    def _next(self) -> bytes | None:
        """Return the bytes to write next; None when all are written, or the reader is gone."""
        while True:
            with self._lock:
                taken: list[bytes] = []
                size = 0
                while self._pieces and size < _PIECE:
                    taken.append(self._pieces.popleft())
                    size += len(taken[-1])
            if taken:
                return b"".join(taken)
            if self._closing:
                return None
            if not self._wait(0):
                self._fail(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
                return None

    def _wait(self, events: int) -> bool:
        """Wait for bytes, or for room in the file; False when the file has lost its reader."""
        poll = select.poll()
        if not events:
            poll.register(self._wake, select.POLLIN)
        if self._fd is not None:
            poll.register(self._fd, events)
        for fd, what in poll.poll():
            if fd == self._wake.fileno():
                self._wake.hush()
            elif what & (select.POLLERR | select.POLLNVAL):
                return False
            elif what & select.POLLHUP and not events:
                # A terminal that hung up says so again and again.
                return False
        return True

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                count = self._file.write(left)
                if count is None:  # it does not block
                    self._wait(select.POLLOUT)
                    continue
                left = left[count:]
                with self._lock:
                    self._size -= count
        except OSError as error:
            written = data[: len(data) - len(left)]
            torn = len(written) - (written.rfind(b"\n") + 1)
            if torn and self.cut is not None:
                self.cut(torn)
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error = error
        self._tell(self._failed)

    def _failed(self) -> None:
        self._changed()
        if self.on_error is not None:
            self.on_error()
