"""What `velo run` reads: which files there are, what format each has, and how one is opened."""

from __future__ import annotations

import glob
import gzip
import io
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

import click

from velo.cli.parsing import Csv, Ndjson, Parser, Rules

__all__ = ["Input", "Opened", "find_inputs", "reason"]

_FORMATS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv"}
_PARSERS: dict[str, Callable[[str, Rules], Parser]] = {"ndjson": Ndjson, "csv": Csv}
CHUNK = 64 * 1024


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


@dataclass
class Opened:
    """An input that is being read.

    Attributes:
        read: Returns the next bytes as soon as there are some, empty ones at the end.
        position: How much was read, in the measure of the input's `size`.
        close: Lets go of it.

    """

    read: Callable[[], bytes]
    position: Callable[[], int]
    close: Callable[[], None]


@dataclass(frozen=True)
class Input:
    """One file, or standard input.

    Attributes:
        path: Where it is; `-` is standard input.
        format: `"ndjson"` or `"csv"`.
        open: Opens it for reading.
        size: How far its position will get, or None for a pipe.
        pipe: The descriptor to wait on before reading, of a pipe that may have nothing for a while.

    """

    path: str
    format: str
    open: Callable[[], Opened]
    size: int | None
    pipe: int | None = None

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return "standard input" if self.path == "-" else f"`{self.path}`"

    def parser(self, rules: Rules) -> Parser:
        """Return what makes events of its bytes."""
        return _PARSERS[self.format]("" if self.path == "-" else self.path, rules)


def find_inputs(
    paths: Sequence[str], format: str | None = None, *, follow: bool = False
) -> list[Input]:
    """Return the inputs that paths and patterns name, in order; those of a pattern by name.

    Files that are to be followed need not be there yet.

    Raises:
        click.UsageError: When one cannot be read, when nothing matches a pattern, or when nothing
            says which format a file has.

    """
    if paths.count("-") > 1:
        raise click.UsageError("standard input can be read once: name `-` once")
    found: list[Input] = []
    for pattern in paths:
        for path in _matches(pattern):
            try:
                found.append(_followed(path, format) if follow else _input(path, format))
            except zipfile.BadZipFile:
                raise click.UsageError(f"`{path}` is not a zip file") from None
            except OSError as error:
                raise click.UsageError(f"cannot read `{path}`: {reason(error)}") from None
    return found


def reason(error: Exception) -> str:
    """Return why something could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        return [pattern]
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not found:
        raise click.UsageError(f"no file matches `{pattern}`")
    return found


def _followed(path: str, format: str | None) -> Input:
    if path == "-" or PurePath(path).suffix in (".gz", ".zip"):
        raise click.UsageError(f"`--follow` is for plain files that grow, which `{path}` is not")
    if os.path.exists(path) and not os.path.isfile(path):
        raise click.UsageError(f"`--follow` is for files, and `{path}` is none")
    return Input(path, format or _format_of(path, path), partial(_open_plain, path), None)


def _input(path: str, format: str | None) -> Input:
    if path == "-":
        # Unbuffered, by descriptor: a thread that is blocked in it holds no lock at exit.
        raw = io.FileIO(sys.stdin.fileno(), "rb", closefd=False)
        return Input(path, format or "ndjson", lambda: _counted(raw), None, raw.fileno())
    name = PurePath(path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        # A named pipe is opened once: whoever writes to it would take a second time for its end.
        pipe = io.FileIO(path, "rb")
        format = format or _format_of(path, name.name)
        return Input(path, format, lambda: _counted(pipe), None, pipe.fileno())
    if name.suffix == ".zip":
        member, size = _look_into_zip(path)
        if PurePath(name.stem).suffix in _FORMATS:
            member = name.stem
        return Input(path, format or _format_of(path, member), partial(_open_zip, path), size)
    io.FileIO(path, "rb").close()  # whether it can be read is said at once
    if name.suffix == ".gz":
        format = format or _format_of(path, name.stem)
        return Input(path, format, partial(_open_gzip, path), status.st_size)
    format = format or _format_of(path, name.name)
    return Input(path, format, partial(_open_plain, path), status.st_size)


def _open_plain(path: str) -> Opened:
    return _counted(io.FileIO(path, "rb"))


def _open_gzip(path: str) -> Opened:
    file = io.FileIO(path, "rb")
    packed = gzip.GzipFile(fileobj=file)
    return Opened(lambda: packed.read1(CHUNK), file.tell, file.close)


def _look_into_zip(path: str) -> tuple[str, int]:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise click.UsageError(f"`{path}` holds {len(members)} files; it must hold exactly one")
    if members[0].flag_bits & 1:
        raise click.UsageError(f"`{path}` is encrypted; unpack it first")
    return members[0].filename, members[0].file_size


def _open_zip(path: str) -> Opened:
    member, _ = _look_into_zip(path)
    archive = zipfile.ZipFile(path)
    stream: Any = archive.open(member)
    archive.close()  # the member keeps the file
    return _counted(stream)


def _format_of(path: str, name: str) -> str:
    try:
        return _FORMATS[PurePath(name).suffix.lower()]
    except KeyError:
        known = ", ".join(_FORMATS)
        raise click.UsageError(
            f"`{path}` has none of the extensions {known}; say `--format ndjson` or `--format csv`"
        ) from None


def _counted(stream: _Readable) -> Opened:
    count = 0

    def read() -> bytes:
        nonlocal count
        data = some(CHUNK) or b""
        count += len(data)
        return data

    some: Callable[[int], bytes | None] = getattr(stream, "read1", stream.read)
    return Opened(read, lambda: count, stream.close)
