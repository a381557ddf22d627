"""Files: lines as a source, also of packed files and of ones that grow; and as a sink."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, unquote

from velo._files import open_own, sync
from velo.connect._file.ends import Mark, cut, cut_torn_line, mark_of
from velo.connect._file.lines import Lines
from velo.connect._file.members import cut_torn_member
from velo.connect._file.packing import Packed, packer
from velo.connect.errors import ConnectError, PositionLost
from velo.connect.formats import Decode, Encode, encoder, line_decoder
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.rows import Rows
from velo.connect.settings import add_line, boolean, settings_of

__all__ = ["File", "file", "of_url"]

# A line is no longer than this, unless `max_line` says otherwise; bytes.
_LONGEST = 16 * 1024 * 1024
# How often a file that grows is looked at; seconds.
_LOOK = 0.1


def file(
    path: str | os.PathLike[str],
    *,
    decode: Decode = "json",
    encode: Encode = "json",
    start: Literal["earliest"] | int = "earliest",
    follow: bool = False,
    keys: bool = False,
    append: bool = True,
    max_line: int = _LONGEST,
) -> File:
    r"""Read the lines of a file, or write results to one.

    Args:
        path: The file. `.gz`, `.zst`, `.bz2` and `.xz` are packed, with a member for each flush.
        decode: How a line becomes an event: "json", "text", "bytes", "csv" (the first line is the
            header; see `velo.connect.csv`), or a function of bytes. Lines end with `\n` or `\r\n`,
            which are left out; empty lines are skipped.
        encode: How a result becomes a line.
        start: The position to read from: 0, or one that a record had, behind which to begin. A
            position is the number of bytes up to the end of its line, in unpacked form.
        follow: Wait for more at the end of the file, which is not packed. Truncation raises
            `PositionLost`.
        keys: Write `{"key": ..., "result": ...}` instead of the result alone.
        append: Keep what the file has. Otherwise it is begun anew.
        max_line: The most bytes of a line; longer lines are no events.

    """
    return File(
        Path(path),
        decode=decode,
        encode=encode,
        start=start,
        follow=follow,
        keys=keys,
        append=append,
        max_line=max_line,
    )


class File:
    """A file as a source or as a sink; see `file`."""

    def __init__(
        self,
        path: Path,
        *,
        decode: Decode,
        encode: Encode,
        start: Literal["earliest"] | int,
        follow: bool,
        keys: bool,
        append: bool,
        max_line: int,
    ) -> None:
        if follow and packer(path) is not None:
            raise ValueError(f"`{path}` is packed: it cannot be followed")
        if start != "earliest" and not (isinstance(start, int) and start >= 0):
            raise ValueError(f'`start` of a file is "earliest" or a position, not {start!r}')
        self.name = f"file {path}"
        self._path = path
        self._partition = str(path)
        self._decoder = line_decoder(decode)
        self._encode = encoder(encode)
        self._start = 0 if start == "earliest" else start
        self._follow = follow
        self._keys = keys
        self._append = append
        self._rewound = False
        self._max_line = max_line
        self._thread: ThreadPoolExecutor | None = None
        self._out: Any = None
        self._stopped = asyncio.Event()
        self._reads = False

    def __repr__(self) -> str:
        """Its path."""
        return f"file({str(self._path)!r})"

    # Source.

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Give the lines, in batches."""
        stopped, self._reads = self._stopped, True
        lines, decode = await self._call(self._begin)
        try:
            while not stopped.is_set():
                batch = await self._call(self._next, lines, decode)
                if batch:
                    yield batch
                elif not self._follow:
                    return
                else:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopped.wait(), _LOOK)
        finally:
            await self._call(lines.close)
            if self._out is None:
                self._end_thread()

    def _begin(self) -> tuple[Lines, Callable[[bytes], Any]]:
        decode = self._decoder()
        if self._start and isinstance(decode, Rows) and not decode.begun:
            with contextlib.closing(Lines(self._path, 0, self._max_line)) as lines:
                for line, _ in lines.some(last=True):
                    if line and isinstance(line, bytes):
                        decode(line)
                        break
        return Lines(self._path, self._start, self._max_line), decode

    def _next(self, lines: Lines, decode: Callable[[bytes], Any]) -> list[Record | Bad]:
        origin = (None, str(self._path), self._partition)
        batch: list[Record | Bad] = []
        for line, position in lines.some(last=not self._follow):
            add_line(batch, decode, line, *origin, position)
        return batch

    def seek(self, positions: Mapping[Partition, Position]) -> None:
        """Begin behind the position of this file, also when it was moved to another folder.

        Raises:
            PositionLost: When several files of this name were read, and none in this folder.

        """
        name = self._path.name
        moved = [each for each in positions if isinstance(each, str) and Path(each).name == name]
        if self._partition not in positions and moved:
            if len(moved) > 1:
                raise PositionLost(
                    f"`{self._path}` was not read before, but several files of its name were: "
                    f"{', '.join(sorted(moved))}. Give it the path that it had"
                )
            self._partition = moved[0]
        self._start = positions.get(self._partition, self._start)

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()

    async def commit(self, positions: Mapping[Partition, Position]) -> None:
        """Keep nothing: a file has no place for positions."""

    # Sink.

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """Add lines."""
        lines = b"".join([self._line(key, result) for key, result in results])
        await self._call(self._put, lines)

    def _line(self, key: Any, result: Any) -> bytes:
        result = addressed(key, result).value
        line = self._encode({"key": _shown(key), "result": result} if self._keys else result)
        if not isinstance(line, bytes):
            raise TypeError(f"`encode` must give bytes, and gave {type(line).__name__}")
        if b"\n" in line:
            raise ValueError("a result with a line end in it is no line of a file")
        return line + b"\n"

    def _put(self, lines: bytes) -> None:
        with self._named():
            if self._out is None:
                self._out = self._open()
            self._out.write(lines)

    def _open(self) -> Any:
        if self._reads:
            raise ConnectError(f"`{self._path}` is the source: name another file for results")
        mode = "ab" if self._append or self._rewound else "wb"
        packs = packer(self._path)
        raw: Any = open(self._path, mode, opener=open_own)  # noqa: SIM115
        if packs is None:
            cut_torn_line(raw)
            return raw
        cut_torn_member(self._path, raw)
        return Packed(packs, raw)

    async def flush(self) -> None:
        """Return once all lines are on the disk."""
        await self._call(self._sync)

    def _sync(self) -> None:
        with self._named():
            if self._out is None and not (self._append or self._rewound):
                self._out = self._open()  # a run without results begins it anew as well
            if self._out is not None:
                self._out.flush()
                try:
                    os.fsync(self._out.fileno())
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EROFS):  # a pipe, a device
                        raise

    async def mark(self) -> Mark | None:
        """Tell how long the file is, with a checksum of its end.

        None: it is packed, a pipe or a device, and cannot be cut.
        """
        mark: Mark | None = await self._call(self._mark)
        return mark

    def _mark(self) -> Mark | None:
        with self._named():
            is_new = not self._path.exists()
            if packer(self._path) is not None or not (is_new or self._path.is_file()):
                return None
            if self._out is None:
                self._out = self._open()
            if is_new:
                sync(self._path.parent)  # its name, for the time after a power cut
            return mark_of(self._path, os.fstat(self._out.fileno()).st_size)

    async def rewind(self, mark: Mark | None) -> None:
        """Cut off what was written behind a mark; nothing, where that is None.

        Raises:
            PositionLost: When the file is shorter than that, or another one.

        """
        if mark is not None:
            await self._call(self._rewind, mark)

    def _rewind(self, mark: Mark) -> None:
        with self._named():
            cut(self._path, mark)
        self._rewound = True

    async def close(self) -> None:
        """Write what is left, and close the file. It may be read, or written, again."""
        self._stopped.set()
        self._stopped = asyncio.Event()
        self._rewound = False
        if self._out is not None:
            out, self._out = self._out, None
            try:
                await self._call(self._shut, out)
            finally:
                self._end_thread()
        self._end_thread()

    def _shut(self, out: Any) -> None:
        with self._named():
            out.close()

    @contextlib.contextmanager
    def _named(self) -> Any:
        try:
            yield
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConnectError(f"cannot write to `{self._path}`: {why}") from error

    async def _call(self, function: Any, *args: Any) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"velo {self._path.name}")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None


def _shown(key: Any) -> Any:
    return key.decode(errors="replace") if isinstance(key, bytes) else key


def _position(text: str) -> Any:
    return text if text == "earliest" else int(text)


_SETTINGS: dict[str, Any] = {
    "decode": str,
    "encode": str,
    "start": _position,
    "follow": boolean,
    "keys": boolean,
    "append": boolean,
    "max_line": int,
}


def of_url(url: SplitResult, settings: dict[str, str]) -> File:
    """Make the endpoint of `file:///var/log/clicks.ndjson?follow=true`."""
    if url.netloc not in ("", "localhost"):
        raise ValueError("a file has no host: write file:///PATH")
    return file(unquote(url.path), **settings_of(settings, _SETTINGS, "file"))
