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
from velo.cli import jsonlines, streams
from velo.cli.errors import Failure
from velo.cli.keys import Written as WrittenKey
from velo.cli.keys import form
from velo.cli.outlet import Outlet
from velo.cli.packing import zstd_of
from velo.cli.resuming import Written, open_resumed
from velo.cli.text import inline, safe_json

__all__ = ["Unread", "Writer", "open_output", "resume_output"]

_PIECE = 64 * 1024
# How many seconds a result may wait for others to be written with it.
_PATIENCE = 0.05
# What a file that takes no more says, and what to do about it.
_ROOM = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in its disk quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`, `LimitFSIZE=`)",
}


class Unread(Failure):
    """Whoever read the output has left: nothing went wrong."""


def open_output(path: str, inputs: Sequence[str]) -> Output:
    """Create a file, or take standard output for `-`.

    Raises:
        click.UsageError: When it cannot be created, is one of the inputs, or is somebody else's in
            a folder that all can write to.

    """
    if path == "-":
        if 1 in streams.closed:
            raise Failure("standard output is closed: name a file with `--output`")
        # Python's own buffer would be written to a closed pipe once more at exit.
        return io.FileIO(1, "wb", closefd=False)
    with _said(path, inputs):
        suffix = os.path.splitext(path)[1].lower()
        zstd = zstd_of(path) if suffix == ".zst" else None
        file = io.FileIO(path, "wb", opener=open_own)
        if zstd is not None:
            return _Packed(zstd.ZstdFile(file, "w"), file)
        if suffix == ".gz":
            return _Packed(gzip.GzipFile(os.path.basename(path), "wb", 6, file), file)
        return file


class _Packed:
    """What packs what is written to it, and the file below."""

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
    """Open a file behind the results that an earlier run has written to it, and return them too.

    Raises:
        click.UsageError: When it cannot be opened, is one of the inputs, or holds something else.

    """
    with _said(path, inputs):
        return open_resumed(path, keyed=keyed)


@contextlib.contextmanager
def _said(path: str, inputs: Sequence[str]) -> Iterator[None]:
    try:
        if os.path.exists(path):
            for input in inputs:
                if input != "-" and os.path.exists(input) and os.path.samefile(path, input):
                    raise click.UsageError(
                        f"`{path}` is the input; name another file for the output"
                    )
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.UsageError(f"cannot write `{path}`: {reason}") from None


Output = io.FileIO | _Packed


class Writer:
    """Collects lines and has them written.

    Args:
        file: Where to.
        name: What to call that in messages; `-` is standard output.
        keyed: Whether each line says the key of its stream.
        written: What an earlier run has written; it is not written again.

    Attributes:
        count: How many results there were, those included that an earlier run has written.
        failed: Why the file takes no more, once that has turned out.
        on_failure: Called in the event loop when that turns out.

    """

    def __init__(
        self, file: Output, name: str, *, keyed: bool = False, written: Written | None = None
    ) -> None:
        self.count = 0
        self.failed: Failure | None = None
        self.on_failure: Callable[[], object] | None = None
        self._keyed = keyed
        self._written = written
        self._file = file
        self._name = "standard output" if name == "-" else f"`{inline(name)}`"
        self._outlet = Outlet(file, file.fileno() if isinstance(file, io.FileIO) else None)
        self._outlet.on_error = self._failed
        self._outlet.cut = self._cut
        # A terminal obeys what it is sent.
        self._shown = isinstance(file, io.FileIO) and file.isatty()
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Notice from now on when nobody reads the output any more."""
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
        """How many bytes were not written yet."""
        return self._size + self._outlet.size

    def write(self, result: Any, key: Any = None) -> None:
        """Add one result.

        Raises:
            TypeError: When it cannot be written as JSON; the message says why.
            Failure: When an earlier one could not be written, or an earlier run has written another
                one in its place.

        """
        if self.failed is not None:
            raise self.failed
        line = self._line(result, key)
        self.count += 1
        if self._written is not None and self._written.has(form(key), line):
            return
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _PIECE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self.flush)

    async def emptied(self) -> None:
        """Wait until all that was added is in the file.

        Raises:
            Failure: When the file takes no more.

        """
        self.flush()
        await self._outlet.emptied()
        if self.failed is not None:
            raise self.failed

    def _line(self, result: Any, key: Any) -> bytes:
        if not self._keyed:
            return jsonlines.dumps(result)
        if isinstance(key, WrittenKey) and key.is_json:
            return b'{"key":%b,"result":%b}\n' % (
                key.text.encode(),
                jsonlines.dumps(result).removesuffix(b"\n"),
            )
        return jsonlines.dumps({"key": form(key), "result": result})

    def flush(self) -> None:
        """Have written what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        if data:
            self._outlet.put(safe_json(data) if self._shown else data)

    async def close(self) -> None:
        """Write what is left, and close the file.

        Raises:
            Failure: When anything could not be written.

        """
        if self.failed is None:
            self.flush()
        await self._outlet.close()
        self._failed()
        if self.failed is not None:
            raise self.failed

    def give_up(self) -> Failure:
        """Wait no longer, and say what that means."""
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
        """Take back what was written of a line that has no end."""
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
        """Whether it is one that has a name and is no device."""
        name = self._file.name
        return isinstance(name, str | bytes) and os.path.isfile(name)
