"""Opening files where other users may have put something in the way, and syncing to disk."""

from __future__ import annotations

import errno
import os
import stat

from velo._system import OWN_FILE

__all__ = ["SharedFile", "create_own", "open_own", "sync"]


class SharedFile(OSError):
    """Something is in the way that others could have put there."""


def open_own(path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file to write to it, as `os.open` does.

    In a folder that everybody may write to, such as `/tmp`, what is there must be this user's own:
    links are not followed.

    Raises:
        OSError: When it cannot be opened, or is somebody else's.

    """
    folder = os.stat(os.path.dirname(path) or ".")
    if not folder.st_mode & stat.S_IWOTH or not hasattr(os, "geteuid"):
        return os.open(path, flags, mode)
    try:
        fd = os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _in_the_way("a link") from None
        raise
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise _in_the_way("another user's file")
        if found.st_nlink > 1:
            raise _in_the_way("a file of several names")
        os.set_blocking(fd, True)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_own(path: str, flags: int = os.O_WRONLY | os.O_APPEND) -> int:
    """Create a file that nobody else can read; one that is there already is an error.

    Raises:
        FileExistsError: When there is something, a link included.

    """
    return os.open(path, flags | os.O_CREAT | os.O_EXCL | OWN_FILE, 0o600)


def sync(path: str | os.PathLike[str]) -> None:
    """Return once a file, or the names in a folder, are on the disk.

    Raises:
        OSError: When it cannot be opened, or written to the disk.

    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _in_the_way(what: str) -> SharedFile:
    return SharedFile(
        errno.EACCES, f"it is {what} in a folder that everybody may write to; choose another path"
    )
