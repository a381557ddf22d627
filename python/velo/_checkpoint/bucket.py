"""The objects of one checkpoint: those right under a prefix of an object store.

Calls block. A store that does not answer is tried again, with growing pauses, up to a limit.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from velo._checkpoint.address import Address
from velo._files import sync
from velo.connect.errors import AuthenticationFailed, PermissionDenied, missing
from velo.connect.settings import wait_of
from velo.errors import CheckpointError

try:
    import obstore
    from obstore import exceptions as theirs
except ImportError as error:
    raise missing("a checkpoint in an object store", "objects") from error

from velo.connect.object_store import kind_of, opened, said, status_of

__all__ = ["Absent", "Bucket"]

T = TypeVar("T")

_log = logging.getLogger("velo.checkpoint")

_CHUNK_BYTES = 1024 * 1024
_LONGEST_PAUSE = 5.0
# Errors that another try does not mend; and statuses of HTTP between 400 and 499 that it may.
_PASSING = (408, 409, 425, 429)
_LASTING = (
    theirs.UnauthenticatedError,
    theirs.PermissionDeniedError,
    theirs.NotSupportedError,
    theirs.InvalidPathError,
)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_ERROR = re.compile(r"\(os error (\d+)\)")
_ABSENT = (theirs.NotFoundError, FileNotFoundError)
_THERE = (theirs.AlreadyExistsError, theirs.PreconditionError, FileExistsError)


class Absent(Exception):
    """There is no object of this name."""


class Bucket:
    """The objects under a prefix.

    Attributes:
        url: The store and the prefix, for messages.

    Args:
        address: Where they are.

    """

    def __init__(self, address: Address) -> None:
        self._store, self._prefix, self.url = opened(
            address.url,
            address.options,
            what="checkpoint",
            retries=0,
            connect_timeout=address.connect_timeout,
        )
        self._is_folder = self.url.startswith("file:")
        self._patience = address.patience
        self._closing = threading.Event()

    def close(self) -> None:
        """Give up what does not succeed at once, from now on."""
        self._closing.set()

    def sizes(self) -> dict[str, int]:
        """Give the names of all objects, in order, with their sizes.

        Raises:
            CheckpointError: When they cannot be listed.

        """
        cut = len(self._path(""))

        def list_them() -> dict[str, int]:
            listed = obstore.list_with_delimiter(self._store, prefix=self._prefix or None)
            found = {each["path"][cut:]: each["size"] for each in listed["objects"]}
            return {name: found[name] for name in sorted(found)}

        try:
            return self._again("list", list_them)
        except Absent:  # no folder yet
            return {}

    def prefixes(self) -> list[str]:
        """Give the names of the prefixes right under this one, in order.

        Raises:
            CheckpointError: When they cannot be listed.

        """
        cut = len(self._path(""))

        def list_them() -> list[str]:
            listed = obstore.list_with_delimiter(self._store, prefix=self._prefix or None)
            return sorted(path[cut:].rstrip("/") for path in listed["common_prefixes"])

        try:
            return self._again("list", list_them)
        except Absent:  # no folder yet
            return []

    def get(self, name: str) -> bytes:
        """Give an object.

        Raises:
            Absent: When there is none.
            CheckpointError: When it cannot be read.

        """
        return self._again(
            f"read `{name}` of", lambda: bytes(obstore.get(self._store, self._path(name)).bytes())
        )

    def read(self, name: str, take: Callable[[Iterator[bytes]], T]) -> T:
        """Have an object taken in pieces; from its beginning again, where one does not come.

        Raises:
            Absent: When there is none.
            CheckpointError: When it cannot be read.

        """

        def pieces() -> Iterator[bytes]:
            got = obstore.get(self._store, self._path(name))
            for piece in got.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(piece)

        return self._again(f"read `{name}` of", lambda: take(pieces()))

    def put(self, name: str, pieces: Callable[[], Iterable[bytes]]) -> None:
        """Write an object, whose name no other one has had.

        Raises:
            CheckpointError: When that fails.

        """

        def write() -> None:
            obstore.put(self._store, self._path(name), pieces())
            self.sync(name)

        self._again(f"write `{name}` to", write)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of this name; false: there is another one.

        Where the answer to a try was lost, the object says whose it is: no other program writes the
        same data.

        Raises:
            CheckpointError: When that fails; then it may be there.

        """

        def write() -> bool:
            if self._excludes(name, data):
                there = obstore.get(self._store, self._path(name)).bytes()
                return bytes(there) == data
            return True

        return self._again(f"write `{name}` to", write, absent_again=True)

    def excludes(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of this name; true: there is one, also of this program.

        Raises:
            CheckpointError: When that fails.

        """
        return self._again(
            f"write `{name}` to", lambda: self._excludes(name, data), absent_again=True
        )

    def _excludes(self, name: str, data: bytes) -> bool:
        try:
            obstore.put(self._store, self._path(name), data, mode="create", use_multipart=False)
        except _THERE:
            return True
        self.sync(name)
        return False

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name.

        Raises:
            CheckpointError: When that cannot be told.

        """
        try:
            self._again(
                f"look for `{name}` in", lambda: obstore.head(self._store, self._path(name))
            )
        except Absent:
            return False
        return True

    def delete(self, names: list[str]) -> None:
        """Delete objects; those that are not there already count as deleted.

        Raises:
            CheckpointError: When that fails.

        """
        if names:
            paths = [self._path(name) for name in names]
            with contextlib.suppress(Absent):
                self._again("delete objects of", lambda: obstore.delete(self._store, paths))

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def sync(self, name: str) -> None:
        """Have an object survive a power cut: a store in a folder leaves that to the system."""
        if not self._is_folder:
            return
        file = f"/{self._path(name)}"
        sync(file)
        folder = os.path.dirname(file)
        for path in (folder, os.path.dirname(folder)):
            with contextlib.suppress(OSError):  # not each file system has that for folders
                sync(path)

    def _again(self, what: str, call: Callable[[], T], *, absent_again: bool = False) -> T:
        deadline = time.monotonic() + self._patience
        attempt = 0
        while True:
            try:
                return call()
            except (theirs.BaseError, OSError) as error:
                if isinstance(error, _ABSENT) and not absent_again:
                    if "NoSuchBucket" not in str(error):
                        raise Absent from None
                    raise self._failed(what, error) from None
                if _lasts(error) or time.monotonic() >= deadline or self._closing.is_set():
                    raise self._failed(what, error) from None
                if attempt == 0:
                    _log.warning(
                        "cannot %s the checkpoint `%s`, and trying again for %g s: %s",
                        *(what, self.url, self._patience, said(error)),
                    )
                self._closing.wait(wait_of(attempt, _LONGEST_PAUSE))
                attempt += 1

    def _failed(self, what: str, error: Any) -> CheckpointError:
        if _number_of(error) in _REFUSED:
            remedy = "give this user the right to, or name a folder that it may write to"
        elif kind_of(error) in (AuthenticationFailed, PermissionDenied):
            remedy = "give this program a login that may read, write, list and delete objects there"
        elif _number_of(error) == errno.ENOSPC:
            remedy = "free some of the disk and start again: the last tick is there as it was"
        elif "NoSuchBucket" in str(error):
            remedy = "make the bucket, or name another one"
        else:
            remedy = "start again once the store answers: the last tick is there as it was"
        return CheckpointError(
            f"cannot {what} the checkpoint `{self.url}`: {said(error)}; {remedy}"
        )


def _number_of(error: Exception) -> int | None:
    """Give the number of an error of the system: a store in a folder has it in its text."""
    found = _ERROR.search(str(error))
    return getattr(error, "errno", None) if found is None else int(found[1])


def _lasts(error: Exception) -> bool:
    """Whether another try would fail as well."""
    if _number_of(error) in (*_REFUSED, errno.ENOSPC):
        return True
    status = status_of(error)
    refused = status is not None and 400 <= status < 500 and status not in _PASSING
    return refused or isinstance(error, _LASTING) or "NoSuchBucket" in str(error)
