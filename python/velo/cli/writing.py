"""Writes results as NDJSON: in large pieces when they come fast, at once when they come slowly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import orjson

from velo.cli.errors import Failure
from velo.cli.resuming import Written, open_resumed

__all__ = ["Writer", "open_output", "resume_output"]

Output = io.FileIO | gzip.GzipFile

_PIECE = 64 * 1024
# How many seconds a result may wait for others to be written with it.
_PATIENCE = 0.05
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
# What a file that takes no more says, and what to do about it.
_ROOM = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in its disk quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`, `LimitFSIZE=`)",
}


def open_output(path: str, inputs: Sequence[str]) -> Output:
    """Create a file, or take standard output for `-`.

    Raises:
        click.UsageError: When it cannot be created, or is one of the inputs.

    """
    if path == "-":
        # Python's own buffer would be written to a closed pipe once more at exit.
        return io.FileIO(sys.stdout.fileno(), "wb", closefd=False)
    with _said(path, inputs):
        if path.endswith(".gz"):
            return gzip.GzipFile(path, "wb", compresslevel=6)
        return io.FileIO(path, "wb")


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


class Writer:
    """Collects lines and writes them.

    Args:
        file: Where to.
        name: What to call that in messages; `-` is standard output.
        keyed: Whether each line says the key of its stream.
        written: What an earlier run has written; it is not written again.

    Attributes:
        count: How many results there were, those included that an earlier run has written.
        failed: Why the file takes no more, once that has turned out.
        on_failure: Called when that turns out while nobody writes.

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
        self._name = "standard output" if name == "-" else f"`{name}`"
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, result: Any, key: Any = None) -> None:
        """Add one result.

        Raises:
            Failure: When it cannot be written as JSON, an earlier one could not be written, or an
                earlier run has written another one in its place.

        """
        if self.failed is not None:
            raise self.failed
        try:
            what = {"key": key, "result": result} if self._keyed else result
            line = orjson.dumps(what, _plain, _OPTIONS)
        except TypeError as error:
            why = error.__cause__ or error
            raise Failure(f"a result cannot be written as JSON: {_lower(why)}") from None
        self.count += 1
        if self._written is not None and self._written.has(key, line):
            return
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _PIECE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._late)

    def _late(self) -> None:
        try:
            self.flush()
        except Failure:
            if self.on_failure is not None:
                self.on_failure()

    def flush(self) -> None:
        """Write what there is.

        Raises:
            Failure: When the file takes no more. A plain file ends with a whole line all the same.

        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = left = memoryview(b"".join(self._lines))
        self._lines.clear()
        self._size = 0
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._cut(bytes(data[: len(data) - len(left)]))
            self.failed = self._describe(error)
            raise self.failed from None

    def _cut(self, written: bytes) -> None:
        """Take back what was written of a line that has no end."""
        torn = len(written) - (written.rfind(b"\n") + 1)
        if torn and isinstance(self._file, io.FileIO) and self._is_file():
            with contextlib.suppress(OSError):  # a disk that is worse than full
                self._file.truncate(self._file.seek(-torn, os.SEEK_CUR))

    def _describe(self, error: OSError) -> Failure:
        what = f"cannot write to {self._name}: {(error.strerror or str(error)).lower()}"
        remedy = _ROOM.get(error.errno or 0)
        if remedy is None or not self._is_file():
            return Failure(what)
        if isinstance(self._file, gzip.GzipFile):
            return Failure(f"{what}; {remedy} and run it anew: what there is of it breaks off")
        return Failure(
            f"{what}; the results that it has are whole: {remedy}, and run the same command with "
            "`--resume` to add the others"
        )

    def _is_file(self) -> bool:
        """Whether it is one that has a name and is no device."""
        name = self._file.name
        return isinstance(name, str | bytes) and os.path.isfile(name)

    def close(self) -> None:
        """Write what is left, and close the file.

        Raises:
            Failure: When anything could not be written.

        """
        try:
            if self.failed is None:
                self.flush()
        finally:
            self._close()
        if self.failed is not None:
            raise self.failed

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # compressed data that is left, or a disk behind a network
            if self.failed is None:
                self.failed = self._describe(error)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        # In an order that is the same in every process, which that of hashes is not.
        try:
            return sorted(value)
        except TypeError:
            return sorted(value, key=repr)
    name = type(value).__qualname__
    raise TypeError(f"`{name}` has no form in JSON; have the function yield a plain value for it")


def _lower(error: BaseException) -> str:
    message = str(error)
    return message[:1].lower() + message[1:]
