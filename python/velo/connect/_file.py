"""Files: lines as a source, also of packed files and of ones that grow; and as a sink."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import errno
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import SplitResult, unquote

from velo._files import open_own
from velo._packing import zstd_module
from velo.connect.errors import ConnectError, NoSuchTopic, PositionLost, missing
from velo.connect.formats import Decode, Encode, decoder, encoder
from velo.connect.model import Bad, Batch, Partition, Position, Record, addressed
from velo.connect.settings import boolean, decoded, settings_of

__all__ = ["File", "file", "of_url"]

_MANY = 500
# A line is no longer than this, unless `max_line` says otherwise; bytes.
_LONGEST = 16 * 1024 * 1024
# How often a file that grows is looked at; seconds.
_LOOK = 0.1
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


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
        path: The file. `.gz`, `.zst`, `.bz2` and `.xz` are packed.
        decode: How a line becomes an event; see `velo.connect.formats`. Lines end with `\n` or
            `\r\n`, which are left out; empty lines are skipped.
        encode: How a result becomes a line.
        start: The position to read from: 0, or one that a record had, behind which to begin. A
            position is the number of bytes up to the end of its line, in unpacked form.
        follow: Wait for more at the end of the file, which is not packed. Truncation raises
            `PositionLost`.
        keys: Write `{"key": ..., "result": ...}` instead of the result alone.
        append: Keep what the file has. Otherwise it is begun anew.
        max_line: Longer lines than so many bytes are no events.

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
        if follow and _packer(path) is not None:
            raise ValueError(f"`{path}` is packed: it cannot be followed")
        if start != "earliest" and not (isinstance(start, int) and start >= 0):
            raise ValueError(f'`start` of a file is "earliest" or a position, not {start!r}')
        self.name = f"file {path}"
        self._path = path
        self._decode = decoder(decode)
        self._encode = encoder(encode)
        self._start = 0 if start == "earliest" else start
        self._follow = follow
        self._keys = keys
        self._append = append
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
        lines = await self._call(_Lines, self._path, self._start, self._max_line)
        try:
            while not stopped.is_set():
                batch = await self._call(self._next, lines)
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

    def _next(self, lines: _Lines) -> list[Record | Bad]:
        origin = (None, str(self._path), str(self._path))
        batch: list[Record | Bad] = []
        for line, position in lines.some(last=not self._follow):
            if isinstance(line, ValueError):
                batch.append(Bad(Record(b"", *origin, position), line))
            elif line:
                batch.append(decoded(self._decode, line, *origin, position))
        return batch

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
        mode = "ab" if self._append else "wb"
        packer = _packer(self._path)
        raw: Any = open(self._path, mode, opener=open_own)  # noqa: SIM115
        if packer is None:
            _cut_torn_line(raw)
            return raw
        return _Packed(packer(raw, "wb"), raw)

    async def flush(self) -> None:
        """Return once all lines are on the disk."""
        await self._call(self._sync)

    def _sync(self) -> None:
        with self._named():
            if self._out is None and not self._append:
                self._out = self._open()  # a run without results begins it anew as well
            if self._out is not None:
                self._out.flush()
                try:
                    os.fsync(self._out.fileno())
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EROFS):  # a pipe, a device
                        raise

    async def close(self) -> None:
        """Write what is left, and close the file. It may be read, or written, again."""
        self._stopped.set()
        self._stopped = asyncio.Event()
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


class _Lines:
    """The lines of a file from a position on."""

    def __init__(self, path: Path, start: int, max_line: int) -> None:
        self._path = path
        self._max_line = max_line
        self._at = start
        self._rest = b""
        self._skipping = False
        packer = _packer(path)
        try:
            self._file: BinaryIO = path.open("rb") if packer is None else packer(path, "rb")
            size = os.stat(path).st_size
        except FileNotFoundError:
            raise NoSuchTopic(f"there is no file `{path}`") from None
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConnectError(f"cannot read `{path}`: {why}") from error
        self._packed = packer is not None
        self._damaged: tuple[type[Exception], ...] = (*_DAMAGED, OSError)
        if path.suffix.lower() == ".zst":
            self._damaged += (_zstd(path).ZstdError,)
        if start and not self._packed and start > size:
            self._file.close()
            raise PositionLost(
                f"`{path}` has {size:,} bytes, and was read up to byte {start:,}: it is another "
                "file, or was cut"
            )
        if start:
            self._file.seek(start)

    def some(self, *, last: bool) -> list[tuple[bytes | ValueError, int]]:
        """Give lines with their positions, a few hundred; none at the end."""
        found: list[tuple[bytes | ValueError, int]] = []
        while len(found) < _MANY:
            try:
                data = self._file.read(64 * 1024) if self._packed else self._grown()
            except self._damaged as error:
                raise ConnectError(
                    f"cannot read `{self._path}` any further: {error or 'it breaks off'}"
                ) from error
            if not data:
                if last and self._rest:
                    found.append(self._line(self._rest))
                    self._rest = b""
                return found
            pieces = (self._rest + data).split(b"\n")
            self._rest = pieces.pop()
            found.extend(self._line(piece + b"\n") for piece in pieces)
            if len(self._rest) > self._max_line and not self._skipping:
                self._skipping = True
            if self._skipping:
                self._at += len(self._rest)
                self._rest = b""
        return found

    def _grown(self) -> bytes:
        if os.fstat(self._file.fileno()).st_size < self._at:
            raise PositionLost(
                f"`{self._path}` was cut while it was read, at byte {self._at:,}: start again with "
                "`start=0`"
            )
        return self._file.read(64 * 1024)

    def _line(self, line: bytes) -> tuple[bytes | ValueError, int]:
        self._at += len(line)
        if self._skipping or len(line) > self._max_line:
            self._skipping = False
            return ValueError(f"a line has more than {self._max_line:,} bytes"), self._at
        return line.rstrip(b"\r\n"), self._at

    def close(self) -> None:
        self._file.close()


class _Packed:
    """What packs what is written to it, and the file below."""

    def __init__(self, packed: Any, raw: Any) -> None:
        self._packed = packed
        self._raw = raw

    def write(self, data: bytes) -> None:
        self._packed.write(data)

    def flush(self) -> None:
        self._packed.flush()
        self._raw.flush()

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def close(self) -> None:
        with contextlib.closing(self._raw):
            self._packed.close()


def _zstd(path: Path) -> Any:
    zstd = zstd_module()
    if zstd is None:
        raise missing(f"`{path}`", "zstd")
    return zstd


def _packer(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return _zstd(path).ZstdFile
    packers: dict[str, Any] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
    packer = packers.get(suffix)
    if packer is gzip.GzipFile:
        return _gzip
    return packer


def _gzip(file: Any, mode: str) -> Any:
    if isinstance(file, Path):
        return gzip.open(file, mode)
    return gzip.GzipFile("", mode, 6, file)


def _cut_torn_line(out: Any) -> None:
    """End the last line, if a program was killed while it wrote that."""
    if not stat.S_ISREG(os.fstat(out.fileno()).st_mode) or not (end := out.seek(0, os.SEEK_END)):
        return
    with open(out.name, "rb") as written:
        at = end
        while at > 0:
            begin = max(0, at - 64 * 1024)
            written.seek(begin)
            if (found := written.read(at - begin).rfind(b"\n")) >= 0:
                at = begin + found + 1
                break
            at = begin
    if at < end:
        out.truncate(at)
        out.seek(0, os.SEEK_END)


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
        raise ValueError(f"file://{url.netloc}: a file has no host; write file:///PATH")
    return file(unquote(url.path), **settings_of(settings, _SETTINGS, "file"))
