"""`--resume`: the results that an earlier run has written, which are not written again.

A stream's state is in local variables, which are lost with the stopped run. So the input is read
from its beginning and every function runs again, which rebuilds its state. A result that the output
already holds is compared with the output, by key and in order, and left out. The output is the only
memory of the earlier run, so no other file can disagree with it.
"""

from __future__ import annotations

import io
import os
import zlib
from array import array
from typing import Any

import click

from velo._files import open_own
from velo.cli import jsonlines
from velo.cli.errors import Failure
from velo.cli.keys import Written as WrittenKey
from velo.cli.keys import raw_member

__all__ = ["Written", "open_resumed"]

_PIECE = 1024 * 1024


class Written:
    """The results of a file, by key.

    An incomplete last line does not count; nor do the zeros that a disk leaves after a power cut.

    Args:
        file: The output, at its beginning.
        name: The name of the output in messages.
        keyed: Whether its lines have keys.

    Attributes:
        count: The number of results.
        length: The number of their bytes.

    Raises:
        click.UsageError: When the file holds anything but results.

    """

    def __init__(self, file: io.FileIO, name: str, *, keyed: bool) -> None:
        self.count = 0
        self.length = 0
        self._name = name
        self._keyed = keyed
        self._left: dict[Any, _Sums] = {}
        partial = b""
        while data := file.read(_PIECE):
            *lines, partial = (partial + data).split(b"\n")
            for at, line in enumerate(lines):
                if not self._enter(line):
                    self._refuse_unless_lost(b"\n".join([*lines[at:], partial]), file)
                    return
        # The rest in `partial` is an incomplete line.

    def has(self, key: Any, line: bytes) -> bool:
        """Return whether the file holds this result, which must be the next one of its key.

        Raises:
            Failure: When the file holds another result in this place.

        """
        sums = self._left.get(key)
        if sums is None:
            return False
        if sums.next() != zlib.crc32(line[:-1]):
            raise Failure(
                f"result {sums.at:,}{self._of(key)} is not the one that `{self._name}` has: the "
                "function or the input is not what it was; run without `--resume` to start anew"
            )
        if sums.at == len(sums.all):
            del self._left[key]
        return True

    def check_end(self) -> None:
        """Check that every result of the file came again.

        Raises:
            Failure: When a result did not.

        """
        for key, sums in self._left.items():
            raise Failure(
                f"`{self._name}` has {len(sums.all):,} results{self._of(key)}, and only "
                f"{sums.at:,} came again: the function or the input is not what it was; run "
                "without `--resume` to start anew"
            )

    def _of(self, key: Any) -> str:
        return f" of key {key!r}" if self._keyed else ""

    def _enter(self, line: bytes) -> bool:
        try:
            result = jsonlines.loads(line)
            key = result["key"] if self._keyed else None
            # A whole number has its value for a form, except `-0`.
            if isinstance(key, bool | float) or (type(key) is int and key == 0):
                raw = raw_member(line.decode(), "key") or ""
                key = key if raw == "0" else WrittenKey(raw)
        except (ValueError, TypeError, KeyError, IndexError):
            return False
        self._left.setdefault(key, _Sums()).all.append(zlib.crc32(line))
        self.count += 1
        self.length += len(line) + 1
        return True

    def _refuse_unless_lost(self, rest: bytes, file: io.FileIO) -> None:
        """Check for the zeros of a power cut: a file may be longer than its bytes on the disk."""
        while not rest.strip(b"\0\n"):
            rest = file.read(_PIECE)
            if not rest:
                return
        what = "results of streams by key" if self._keyed else "results"
        raise click.UsageError(
            f"line {self.count + 1} of `{self._name}` is none that this run would write; "
            f"`--resume` goes on with a file of {what}"
        )


class _Sums:
    """A checksum of each result of one key, and the number of those that came again."""

    __slots__ = ("all", "at")

    def __init__(self) -> None:
        self.all = array("I")
        self.at = 0

    def next(self) -> int:
        sum = self.all[self.at]
        self.at += 1
        return sum


def open_resumed(path: str, *, keyed: bool) -> tuple[io.FileIO, Written]:
    """Open an output to append the missing results; create it if need be.

    Raises:
        OSError: When the output cannot be opened.
        click.UsageError: When the output holds anything but results.

    """
    if (
        path == "-"
        or path.lower().endswith((".gz", ".zst"))
        or (os.path.exists(path) and not os.path.isfile(path))
    ):
        raise click.UsageError(f"`--resume` goes on with a plain file, which `{path}` is not")
    file = io.FileIO(path, "r+b", opener=_open)
    written = Written(file, path, keyed=keyed)
    file.truncate(written.length)
    file.seek(written.length)
    return file, written


def _open(path: str, flags: int) -> int:
    return open_own(path, flags | os.O_CREAT)
