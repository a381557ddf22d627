"""Opens the input of `velo run`, and reads it in a thread: the event loop never waits for it.

Events travel to the loop in bursts: as many as one read brought, so that a slow pipe's events
arrive at once and a fast file's a few hundred at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import sys
import threading
import zipfile
import zlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO, Protocol

import click

from velo.cli.errors import Failure
from velo.cli.parsing import Burst, Lines, Parser

__all__ = ["Input", "Reader", "open_input"]

_FORMATS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv"}
_CHUNK = 64 * 1024
# So many bursts wait for the loop at most: enough to keep it busy, little to throw away at the end.
_AHEAD = 4


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


@dataclass
class Input:
    """An open input.

    Attributes:
        name: What to call it in messages.
        format: `"ndjson"` or `"csv"`.
        read: Returns the next bytes as soon as there are some, empty ones at the end.
        size: How far `position` will get, or None for a pipe.
        position: How much was read.

    """

    name: str
    format: str
    read: Callable[[], bytes]
    size: int | None
    position: Callable[[], int]


def open_input(path: str, format: str | None) -> Input:
    """Open a file, or standard input for `-`.

    Raises:
        click.UsageError: When it cannot be opened, or nothing says which format it has.

    """
    try:
        return _open(path, format)
    except zipfile.BadZipFile:
        raise click.UsageError(f"`{path}` is not a zip file") from None
    except OSError as error:
        raise click.UsageError(f"cannot read `{path}`: {_reason(error)}") from None


def _open(path: str, format: str | None) -> Input:
    if path == "-":
        # Unbuffered, by descriptor: a thread that is blocked in it holds no lock at exit.
        raw = io.FileIO(sys.stdin.fileno(), "rb", closefd=False)
        return _counted("standard input", format or "ndjson", raw, None)
    name = PurePath(path)
    if name.suffix == ".zip":
        member, size, stream = _open_zip(path)
        if PurePath(name.stem).suffix in _FORMATS:
            member = name.stem
        return _counted(path, format or _format_of(path, member), stream, size)
    file = io.FileIO(path, "rb")
    total = os.fstat(file.fileno()).st_size or None  # None: a named pipe
    if name.suffix == ".gz":
        format = format or _format_of(path, name.stem)
        return Input(path, format, _reader(gzip.GzipFile(fileobj=file).read1), total, file.tell)
    return _counted(path, format or _format_of(path, name.name), file, total)


def _open_zip(path: str) -> tuple[str, int, BinaryIO]:
    archive = zipfile.ZipFile(path)
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise click.UsageError(f"`{path}` holds {len(members)} files; it must hold exactly one")
    if members[0].flag_bits & 1:
        raise click.UsageError(f"`{path}` is encrypted; unpack it first")
    stream: Any = archive.open(members[0])
    return members[0].filename, members[0].file_size, stream


def _format_of(path: str, name: str) -> str:
    try:
        return _FORMATS[PurePath(name).suffix.lower()]
    except KeyError:
        known = ", ".join(_FORMATS)
        raise click.UsageError(
            f"`{path}` has none of the extensions {known}; say `--format ndjson` or `--format csv`"
        ) from None


def _reader(read: Callable[[int], bytes | None]) -> Callable[[], bytes]:
    return lambda: read(_CHUNK) or b""


def _counted(name: str, format: str, stream: _Readable, size: int | None) -> Input:
    count = 0

    def read() -> bytes:
        nonlocal count
        data = some(_CHUNK) or b""
        count += len(data)
        return data

    some: Callable[[int], bytes | None] = getattr(stream, "read1", stream.read)
    return Input(name, format, read, size, lambda: count)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


class _Stopped(Exception):
    """Nobody wants more events."""


class Reader:
    """A thread that reads and parses, and the event loop's end of it.

    The thread is a daemon: one that is blocked in a pipe does not keep the program from ending.
    """

    def __init__(self, input: Input, parser: Parser) -> None:
        self._input = input
        self._parser = parser
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Burst | click.ClickException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        self._stopped = False

    async def bursts(self) -> AsyncGenerator[Burst, None]:
        """Yield what was read, until the end of the input or `stop`.

        Raises:
            Failure: When the input cannot be read any further.
            click.UsageError: When a CSV header is none.

        """
        threading.Thread(target=self._work, name="velo run reader", daemon=True).start()
        try:
            while (item := await self._queue.get()) is not None and not self._stopped:
                self._room.release()
                if isinstance(item, click.ClickException):
                    raise item
                yield item
        finally:
            self.stop()

    def stop(self) -> None:
        """Read no further; what the loop has not taken yet is dropped."""
        self._stopped = True
        self._queue.put_nowait(None)
        self._room.release()

    def _work(self) -> None:
        end: click.ClickException | None = None
        try:
            self._parser.parse(Lines(self._input.read), self._emit)
        except click.ClickException as error:
            end = error
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            end = Failure(f"cannot read `{self._input.name}` any further: {_reason(error)}")
        except _Stopped:
            return
        with contextlib.suppress(_Stopped):
            self._hand_over(end)

    def _emit(self, burst: Burst) -> None:
        burst.position = self._input.position()
        self._hand_over(burst)

    def _hand_over(self, item: Burst | click.ClickException | None) -> None:
        self._room.acquire()
        if self._stopped:
            raise _Stopped
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:
            raise _Stopped from None  # the loop is closed: the run is over
