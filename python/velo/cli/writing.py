"""Writes results as NDJSON: in large pieces when they come fast, at once when they come slowly.

Nothing here waits for the file: a thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from velo._files import open_own
from velo.cli import jsonlines, standard_streams
from velo.cli.compression import zstd_of
from velo.cli.errors import Failure
from velo.cli.keys import Written as WrittenKey
from velo.cli.keys import form
from velo.cli.outlet import Outlet
from velo.cli.resuming import Written, open_resumed
from velo.cli.same_file import is_same
from velo.cli.text import inline, safe_json

__all__ = ["Unread", "Writer", "line_of", "open_output", "resume_output"]

_PIECE = 64 * 1024
# The longest time, in seconds, that a result waits for others to be written with it.
_PATIENCE = 0.05
# The errors of a file that takes no more, and what to do about each.
_ROOM = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in its disk quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`, `LimitFSIZE=`)",
}


class Unread(Failure):
    """The reader of the output has left, which is no failure of the run."""


def open_output(path: str, inputs: Sequence[str]) -> Output:
    """Create a file, or empty the one that is there, or take standard output for `-`.

    Raises:
        click.UsageError: When the file cannot be created, is one of the inputs, or belongs to
            another user in a folder that all users can write to.
        Failure: When standard output is closed.

    """
    with _said(path, inputs):
        if path == "-":
            if 1 in standard_streams.closed:
                raise Failure("standard output is closed: name a file with `--output`")
            # Python's own buffer would be written to a closed pipe once more at exit.
            return io.FileIO(1, "wb", closefd=False)
        suffix = os.path.splitext(path)[1].lower()
        zstd = zstd_of(path) if suffix == ".zst" else None
        file = io.FileIO(path, "wb", opener=open_own)
        if zstd is not None:
            return _Packed(zstd.ZstdFile(file, "w"), file)
        if suffix == ".gz":
            return _Packed(gzip.GzipFile(os.path.basename(path), "wb", 6, file), file)
        return file


class _Packed:
    """The compressor to write to, and the file below it."""

    def __init__(self, packed: Any, file: io.FileIO) -> None:
        self.name = file.name
        self._packed = packed
        self._file = file

    def write(self, data: Any, /) -> int:
        written: int = self._packed.write(data)
        return written

    def close(self) -> None:
        with contextlib.closing(self._file):
            self._packed.close()


def resume_output(path: str, inputs: Sequence[str], *, keyed: bool) -> tuple[Output, Written]:
    """Open a file at the end of the results of an earlier run, and return those results too.

    Raises:
        click.UsageError: When the file cannot be opened, is one of the inputs, or holds anything
            but results.

    """
    with _said(path, inputs):
        return open_resumed(path, keyed=keyed)


@contextlib.contextmanager
def _said(path: str, inputs: Sequence[str]) -> Iterator[None]:
    name = "standard output" if path == "-" else f"`{path}`"
    if any(is_same(path, input) for input in inputs):
        raise click.UsageError(f"{name} is the input; name another file for the output")
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.UsageError(f"cannot write {name}: {reason}") from None


def line_of(result: Any, key: Any, *, keyed: bool) -> bytes:
    """Return the line of a result, with its end.

    Raises:
        TypeError: When the result has no form in JSON; the message names the reason.

    """
    if not keyed:
        return jsonlines.dumps(result)
    if isinstance(key, WrittenKey) and key.is_json:
        return b'{"key":%b,"result":%b}\n' % (
            key.text.encode(),
            jsonlines.dumps(result).removesuffix(b"\n"),
        )
    return jsonlines.dumps({"key": form(key), "result": result})


Output = io.FileIO | _Packed


class Writer:
    """Collects lines, and writes them in a thread.

    Args:
        file: The file to write to.
        name: The name of the file in messages; `-` is standard output.
        keyed: Whether each line has the key of its stream.
        written: The results of an earlier run, which are not written again.

    Attributes:
        count: The number of results, with those of an earlier run.
        written: The results of an earlier run, as given.
        failed: The reason why the file takes no more; None before that.
        on_failure: Called in the event loop when `failed` is set.

    """

    def __init__(
        self, file: Output, name: str, *, keyed: bool = False, written: Written | None = None
    ) -> None:
        self.count = 0
        self.failed: Failure | None = None
        self.on_failure: Callable[[], object] | None = None
        self._keyed = keyed
        self.written = written
        self._file = file
        self._name = "standard output" if name == "-" else f"`{inline(name)}`"
        self._outlet = Outlet(file, file.fileno() if isinstance(file, io.FileIO) else None)
        self._outlet.on_error = self._failed
        self._outlet.cut = self._cut
        # A terminal obeys control characters.
        self._shown = isinstance(file, io.FileIO) and file.isatty()
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Notice from now on when the reader of the output leaves."""
        self._outlet.watch(asyncio.get_running_loop())

    @property
    def full(self) -> bool:
        """Whether more results should wait for `room`."""
        return self._outlet.full

    async def room(self) -> None:
        """Wait until there is room."""
        await self._outlet.room()

    @property
    def left(self) -> int:
        """The number of bytes that were not written yet."""
        return self._size + self._outlet.size

    def write(self, result: Any, key: Any = None) -> None:
        """Add one result.

        Raises:
            TypeError: When the result has no form in JSON; the message names the reason.
            Failure: When an earlier result could not be written, or an earlier run has written
                another result in its place.

        """
        self.add(self.line(result, key), key)

    def line(self, result: Any, key: Any = None) -> bytes:
        """Return the line of a result, for `add`.

        Raises:
            TypeError: As `write`.

        """
        return line_of(result, key, keyed=self._keyed)

    def add(self, line: bytes, key: Any = None) -> None:
        """Add the line of a result.

        Raises:
            Failure: As `write`.

        """
        if self.failed is not None:
            raise self.failed
        self.count += 1
        if self.written is not None and self.written.has(form(key), line):
            return
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _PIECE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self.flush)

    async def emptied(self) -> None:
        """Wait until every added result is in the file.

        Raises:
            Failure: When the file takes no more.

        """
        self.flush()
        await self._outlet.emptied()
        if self.failed is not None:
            raise self.failed

    def flush(self) -> None:
        """Hand the collected lines to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        if data:
            self._outlet.put(safe_json(data) if self._shown else data)

    async def close(self) -> None:
        """Write the remaining lines, and close the file.

        Raises:
            Failure: When a line could not be written.

        """
        if self.failed is None:
            self.flush()
        await self._outlet.close()
        self._failed()
        if self.failed is not None:
            raise self.failed

    def give_up(self) -> Failure:
        """Give up waiting for the file, and return the failure with its consequence."""
        self._outlet.on_error = None
        if self.failed is None:
            self.failed = Failure(
                f"{self._name} takes no more: {self.left:,} bytes of results were not written"
            )
        return self.failed

    def _failed(self) -> None:
        if self._outlet.error is None or self.failed is not None:
            return
        self.failed = self._describe(self._outlet.error)
        if self.on_failure is not None:
            self.on_failure()

    def _cut(self, torn: int) -> None:
        """Remove the written part of an incomplete line from the file."""
        if self._is_file() and isinstance(self._file, io.FileIO):
            with contextlib.suppress(OSError):  # a disk that is worse than full
                self._file.truncate(self._file.seek(-torn, os.SEEK_CUR))

    def _describe(self, error: OSError) -> Failure:
        if error.errno == errno.EPIPE and not self._is_file():
            return Unread(f"nobody reads {self._name} any more")
        what = f"cannot write to {self._name}: {(error.strerror or str(error)).lower()}"
        remedy = _ROOM.get(error.errno or 0)
        if remedy is None or not self._is_file():
            return Failure(what)
        if not isinstance(self._file, io.FileIO):
            return Failure(f"{what}; {remedy} and run it anew: what there is of it breaks off")
        return Failure(
            f"{what}; the results that it has are whole: {remedy}, and run the same command with "
            "`--resume` to add the others"
        )

    def _is_file(self) -> bool:
        """Whether the file is a regular file with a name."""
        name = self._file.name
        return isinstance(name, str | bytes) and os.path.isfile(name)
