"""The inputs of `velo run`: finds the files, their formats, and opens them."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

import click

from velo.cli import standard_streams
from velo.cli.compression import open_zstd, zstd_of
from velo.cli.decoding import Decoder
from velo.cli.delimited import Csv
from velo.cli.documents import Json
from velo.cli.errors import Failure
from velo.cli.parsing import Ndjson, Parser, Rules
from velo.cli.text import inline

__all__ = ["CHUNK", "DAMAGED", "Input", "Opened", "find_inputs", "reason"]

_FORMATS = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
CHUNK = 64 * 1024
# The exceptions of files that cannot be read any further, and of damaged compressed files.
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, lzma.LZMAError)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...
    def close(self) -> None: ...


@dataclass
class Opened:
    """An input that is being read.

    Attributes:
        read: Returns the next bytes as soon as there are some, and no bytes at the end; None when
            a pipe that was ready has no bytes.
        position: Returns how far the input was read, in the unit of its `size`.
        close: Closes the input.

    """

    read: Callable[[], bytes | None]
    position: Callable[[], int]
    close: Callable[[], None]


@dataclass(frozen=True)
class Input:
    """One file, or standard input.

    Attributes:
        path: The path of the file; `-` is standard input.
        format: `"ndjson"`, `"json"`, `"csv"` or `"tsv"`.
        open: Opens the file for reading.
        size: The position of the file's end, or None for a pipe.
        pipe: The descriptor of a pipe, to wait on before reading; None for a file.
        encoding: The encoding of the text; None: the one that a BOM names, or UTF-8.
        said: Whether `--format` gave the format.

    """

    path: str
    format: str
    open: Callable[[], Opened]
    size: int | None
    pipe: int | None = None
    encoding: str | None = None
    said: bool = False

    @property
    def name(self) -> str:
        """The name of the input in messages."""
        return "standard input" if self.path == "-" else f"`{self.path}`"

    def parser(self, rules: Rules, *, follow: bool = False) -> Parser:
        """Return the parser of its bytes."""
        name = "" if self.path == "-" else inline(self.path)
        if self.format in ("csv", "tsv"):
            if self.format == "tsv" and rules.delimiter is None:
                rules = replace(rules, delimiter="\t")
            return Csv(name, rules)
        if self.format == "ndjson" or follow:
            return Ndjson(name, rules)
        return Json(name, rules, whole=self.said or self.size is not None)

    def decoder(self) -> Decoder:
        """Return the decoder that turns its bytes into UTF-8."""
        return Decoder(self.encoding, quotes=self.format in ("csv", "tsv"))


def find_inputs(
    paths: Sequence[str],
    format: str | None = None,
    *,
    follow: bool = False,
    encoding: str | None = None,
) -> list[Input]:
    """Return the inputs that paths and patterns name, in order; the files of a pattern by name.

    With `--follow`, a file need not exist yet.

    Raises:
        click.UsageError: When an input cannot be read, no file matches a pattern, or neither the
            name of a file nor an option gives its format.

    """
    if paths.count("-") > 1:
        raise click.UsageError("standard input can be read once: name `-` once")
    found: list[Input] = []
    for pattern in paths:
        for path in _matches(pattern):
            try:
                input = _followed(path, format) if follow else _input(path, format)
            except zipfile.BadZipFile:
                raise click.UsageError(f"`{path}` is not a zip file") from None
            except OSError as error:
                raise click.UsageError(f"cannot read `{path}`: {reason(error)}") from None
            found.append(replace(input, encoding=encoding, said=format is not None))
    return found


def reason(error: Exception) -> str:
    """Return the reason of an error, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        return [pattern]
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not found:
        hint = ""
        if os.path.isdir(folder := os.path.dirname(pattern) or "."):
            hint = f" (there is the folder `{folder}`)" if folder != "." else ""
        raise click.UsageError(f"no file matches `{pattern}`{hint}")
    return found


def _followed(path: str, format: str | None) -> Input:
    if path == "-" or PurePath(path).suffix.lower() in _PACKED:
        raise click.UsageError(f"`--follow` is for plain files that grow, which `{path}` is not")
    if os.path.exists(path) and not os.path.isfile(path):
        raise click.UsageError(f"`--follow` is for files, and `{path}` is none")
    return Input(path, format or _format_of(path, path), partial(_open_plain, path), None)


def _input(path: str, format: str | None) -> Input:
    if path == "-":
        if 0 in standard_streams.closed:
            raise Failure("standard input is closed: name a file with `--input`")
        # Unbuffered, by descriptor: a thread that is blocked in it holds no lock at exit.
        raw = io.FileIO(0, "rb", closefd=False)
        return Input(path, format or "json", lambda: _counted(raw), None, raw.fileno())
    name = PurePath(path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        format = format or _format_of(path, name.name)
        # A named pipe is opened once: closing it for a second opening would end its writer.
        pipe = io.FileIO(path, "rb")
        return Input(path, format, lambda: _counted(pipe), None, pipe.fileno())
    suffix = name.suffix.lower()
    if suffix == ".zip":
        member, size = _look_into_zip(path)
        if PurePath(name.stem).suffix.lower() in _FORMATS:
            member = name.stem
        return Input(path, format or _format_of(path, member), partial(_open_zip, path), size)
    io.FileIO(path, "rb").close()  # an unreadable file is reported at once
    if suffix in _PACKED:
        format = format or _format_of(path, name.stem)
        unpack = _unpacker(path, suffix)
        return Input(path, format, partial(_open_packed, path, unpack), status.st_size)
    format = format or _format_of(path, name.name)
    return Input(path, format, partial(_open_plain, path), status.st_size)


def _open_plain(path: str) -> Opened:
    return _counted(io.FileIO(path, "rb"))


def _unpacker(path: str, suffix: str) -> Callable[[Any], Any]:
    """Return the function that opens a compressed file as a file of its uncompressed bytes."""
    if suffix == ".zst":
        return partial(open_zstd, zstd_of(path))
    unpackers: dict[str, Callable[[Any], Any]] = {
        ".gz": gzip.open,
        ".bz2": bz2.BZ2File,
        ".xz": lzma.LZMAFile,
    }
    return unpackers[suffix]


def _open_packed(path: str, unpack: Callable[[Any], Any]) -> Opened:
    file = io.FileIO(path, "rb")
    packed = unpack(file)
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
            f"`{path}` has none of the extensions {known}; say what it is, as `--format csv` does"
        ) from None


def _counted(stream: _Readable) -> Opened:
    count = 0

    def read() -> bytes | None:
        nonlocal count
        data = some(CHUNK)
        count += len(data or b"")
        return data

    some: Callable[[int], bytes | None] = getattr(stream, "read1", stream.read)
    return Opened(read, lambda: count, stream.close)
