"""The event journal of a checkpoint: records on the disk that no tick has absorbed yet.

It is a folder of files, and its records are numbered from 1. A file that is large is followed by
another one, and removed once a tick has absorbed all its records; the last one stays, so that no
number comes twice and a journal that is missing is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from velo._checkpoint.failing import file_errors, torn
from velo._checkpoint.journal_file import FORMAT, Damaged, Frame, Writer, read, read_header
from velo._diagnostics.failpoints import reached
from velo.errors import CheckpointError

__all__ = ["DiskFull", "EventJournal", "clear", "copy_to", "frames_in", "problems", "size_of"]

_log = logging.getLogger("velo.connect")

T = TypeVar("T")

_FOLDER, _SUFFIX = "journal", ".log"
# A file has about so many bytes; one frame may have more.
_MOST = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(CheckpointError):
    """There is no room for the records: none of them is in the journal."""


class _File(NamedTuple):
    path: Path
    end: int  # the number behind its last record


class EventJournal:
    """The event journal of an open checkpoint, whose folder this process has claimed.

    Args:
        path: The folder of the checkpoint.
        behind: The highest number that the checkpoint has absorbed; 0 when it knows of none.
        most: The bytes after which a file is followed by another one.

    Raises:
        CheckpointError: When it is torn, foreign, of a newer velo, or missing.

    """

    def __init__(self, path: Path, behind: int, *, most: int = _MOST) -> None:
        self._path = path
        self._folder = path / _FOLDER
        self._most = most
        self._writer: Writer | None = None
        self._first = 0  # the number of its first record
        with file_errors(path):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._files = _looked_through(path, mends=True)
        self._follows = self._files[-1].end if self._files else 0
        if behind and not self._files:
            raise torn(path, "its journal is missing")
        if self._files and (first := int(self._files[0].path.stem)) > behind + 1:
            raise torn(
                path, f"the records {behind + 1:,} to {first - 1:,} are missing in its journal"
            )
        self.next = max(self._follows, behind + 1)
        self._thread = ThreadPoolExecutor(1, "velo journal")

    @property
    def begins_file(self) -> bool:
        """Whether the next frame is the first one of a file.

        The file may be there already: of one for which there was no room.
        """
        return self._writer is None or self._writer.is_empty or self._is_long(self._writer)

    async def frames(self) -> AsyncIterator[Frame]:
        """Give what was there when the journal was opened."""
        for file in list(self._files):
            for frame in await self._call(partial(_frames_of, file.path)):
                yield frame

    async def append(self, payload: bytes, count: int) -> int:
        """Write records; return the number of the first one once they are on the disk.

        Args:
            payload: Their bytes.
            count: How many they are.

        Raises:
            DiskFull: When there is no room: the call may be made again.
            CheckpointError: When they cannot be written for another reason.

        """
        first = self.next
        await self._call(lambda: self._append(Frame(first, count, payload)))
        self.next = first + count
        return first

    def _append(self, frame: Frame) -> None:
        with file_errors(self._path):
            try:
                writer = self._writer
                if writer is None or self._is_long(writer):
                    writer = self._begin_file(frame.first)
                try:
                    writer.append(frame)
                except OSError:
                    writer.cut()
                    raise
            except OSError as error:
                if error.errno in _FULL:
                    raise DiskFull(
                        f"the disk of the checkpoint `{self._path}` is full: free some of it"
                    ) from error
                raise
        file = _File(_path_of(self._folder, self._first), frame.end)
        if self._files and self._files[-1].path == file.path:
            self._files[-1] = file
        else:
            self._files.append(file)

    def _is_long(self, writer: Writer) -> bool:
        return writer.size >= self._most

    def _begin_file(self, first: int) -> Writer:
        follows = self._files[-1].end if self._files else self._follows
        writer = Writer(_path_of(self._folder, first), first, follows)
        if self._writer is not None:
            self._writer.close()
        self._writer, self._first = writer, first
        return writer

    async def drop(self, absorbed: int) -> None:
        """Remove files of which no record has a higher number than this."""
        if len(self._files) > 1 and self._files[0].end <= absorbed + 1:
            await self._call(lambda: self._drop(absorbed))

    def _drop(self, absorbed: int) -> None:
        with file_errors(self._path):
            while len(self._files) > 1 and self._files[0].end <= absorbed + 1:
                reached("journal", 5)
                self._files[0].path.unlink()
                del self._files[0]
                reached("journal", 6)

    async def _call(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """Wait for what is under way, and close the files."""
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _path_of(folder: Path, first: int) -> Path:
    return folder / f"{first:020}{_SUFFIX}"


def _frames_of(file: Path) -> list[Frame]:
    return list(read(file.read_bytes()))


def _looked_through(path: Path, *, mends: bool) -> list[_File]:
    """Read all files of the event journal of a checkpoint.

    Args:
        path: The folder of the checkpoint.
        mends: Whether to remove what a crash has left unfinished.

    Raises:
        CheckpointError: When one of them is not what was written, or missing.

    """
    found: list[_File] = []
    files = sorted((path / _FOLDER).glob(f"*{_SUFFIX}"))
    for file in files:
        try:
            end, damaged = _end_of(path, file, found[-1].end if found else None)
        except FileNotFoundError:  # a run has removed it, and those before it
            found.clear()
            continue
        if damaged is not None and not (damaged.by_crash and file == files[-1]):
            raise torn(path, f"`{file.relative_to(path)}` has changed at byte {damaged.at:,}")
        if mends and damaged is not None:
            _log.info("the last write to `%s` was not finished; it is dropped", file)
            _cut(file, damaged.at)
        if end is not None:
            found.append(_File(file, end))
        elif mends:
            file.unlink()  # nothing was written to it
    return found


def _end_of(path: Path, file: Path, follows: int | None) -> tuple[int | None, Damaged | None]:
    """Give the number behind the last record of a file, and what is wrong with it."""
    data = file.read_bytes()
    name = f"`{file.relative_to(path)}`"
    try:
        header = read_header(data)
    except Damaged as damaged:
        if damaged.newer:
            raise CheckpointError(
                f"{name} of the checkpoint `{path}` was written by a newer velo, in format "
                f"{damaged.newer}; this one reads up to format {FORMAT}: update velo"
            ) from None
        raise torn(path, f"{name} is no journal of velo, or has changed") from None
    if f"{header.first:020}" != file.stem:
        raise torn(path, f"{name} has another name than it was written under")
    if follows is not None and header.follows != follows:
        raise torn(path, f"the journal has no records {follows:,} to {header.first - 1:,}")
    end = None
    try:
        for frame in read(data):
            end = frame.end
    except Damaged as damaged:
        return end, damaged
    return end, None


def _cut(file: Path, size: int) -> None:
    with open(file, "r+b") as opened:
        opened.truncate(size)
        os.fsync(opened.fileno())


# For `velo checkpoint`.


def size_of(path: Path) -> int:
    """Return the bytes of the journal of a checkpoint."""
    sizes = []
    for file in (path / _FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a tick has absorbed it
            sizes.append(file.stat().st_size)
    return sum(sizes)


def problems(path: Path) -> list[str]:
    """Read the journal of a checkpoint, and return what is wrong with it."""
    try:
        _looked_through(path, mends=False)
    except CheckpointError as error:
        return [str(error)]
    return []


def frames_in(path: Path) -> Iterator[Frame]:
    """Read the journal of a checkpoint, also while a run uses it.

    Raises:
        CheckpointError: When it is torn.

    """
    for file in _looked_through(path, mends=False):
        # A tick has absorbed it since; a write at its end is not finished.
        with contextlib.suppress(FileNotFoundError, Damaged):
            yield from read(file.path.read_bytes())


def copy_to(path: Path, folder: Path) -> None:
    """Copy the journal of a checkpoint, also while a run uses it.

    It comes before the states: they may have absorbed more than the copied journal has, never less
    than what it begins with.
    """
    files = sorted((path / _FOLDER).glob(f"*{_SUFFIX}"), reverse=True)
    if not files:
        return
    with file_errors(folder):
        (folder / _FOLDER).mkdir(mode=0o700, exist_ok=True)
        for file in files:  # from the end: ticks remove them from the beginning
            try:
                shutil.copyfile(file, folder / _FOLDER / file.name)
            except FileNotFoundError:
                return


def clear(path: Path) -> None:
    """Remove the journal of a checkpoint."""
    with file_errors(path), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path / _FOLDER)
