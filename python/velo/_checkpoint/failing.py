"""The errors of the file of a checkpoint. Each message says what to do."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from velo._checkpoint.folder import STATE
from velo.errors import CheckpointError

__all__ = ["Torn", "file_errors", "foreign", "sqlite_errors", "torn"]


class Torn(CheckpointError):
    """A file differs from the one that velo has written.

    Attributes:
        why: What differs.

    """

    why = ""


@contextlib.contextmanager
def sqlite_errors(path: str | Path) -> Iterator[None]:
    """Turn an error of SQLite about the checkpoint in this folder into a `CheckpointError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(path, error) from error


@contextlib.contextmanager
def file_errors(path: str | Path) -> Iterator[None]:
    """Turn an error of the system about its files into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _full(path) from error
        why = (error.strerror or str(error)).lower()
        raise CheckpointError(f"the checkpoint `{path}` cannot be written: {why}") from error


def torn(path: str | Path, why: str) -> Torn:
    """Return the error of a file that differs from the one that velo has written."""
    error = Torn(
        f"the checkpoint `{path}` is torn: {why}; restore the folder from a copy, or remove it to "
        "begin anew"
    )
    error.why = why
    return error


def foreign(path: str | Path) -> CheckpointError:
    """Return the error of a file that another program has written."""
    return CheckpointError(f"`{path}/{STATE}` is no checkpoint of velo; name another folder")


def _full(path: str | Path) -> CheckpointError:
    return CheckpointError(
        f"the disk of the checkpoint `{path}` is full; free some of it and start again: the last "
        "tick is there as it was"
    )


def _of_sqlite(path: str | Path, error: sqlite3.Error) -> CheckpointError:
    name = f"the checkpoint `{path}`"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the details
    if code == sqlite3.SQLITE_NOTADB:
        return foreign(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return torn(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return _full(path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return CheckpointError(
            f"{name} cannot be written to: {error}; give this user the right to, or name another "
            "folder"
        )
    if code == sqlite3.SQLITE_BUSY:
        return CheckpointError(f"{name} is locked by another program: {error}")
    return CheckpointError(f"{name} cannot be used: {error}")
