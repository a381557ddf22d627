"""The log of a detached supervisor: a file of velo's that no other user can read.

A file that exists already may be a document of this user, or planted by another user. So a file is
used again, and removed, only if it belongs to this user alone and begins as velo's logs do.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
from pathlib import Path

from velo._files import create_own

__all__ = ["LONGEST_FIRST", "beside", "open_log", "remove"]

_FIRST = {"text": b"velo supervisor log\n", "json": b'{"message":"velo supervisor log"}\n'}
LONGEST_FIRST = max(map(len, _FIRST.values()))
LONGEST_FIRST = max(map(len, _FIRST.values()))
# The number of names to try.
_NAMES = 100


def beside(socket: Path) -> Path:
    """Return the usual name of the log of a supervisor."""
    return socket.with_suffix(".log")


def open_log(usual: Path, log_format: str) -> tuple[Path, int]:
    """Open a log to append to, and lock it for as long as a process has it open.

    Returns its path, which differs from `usual` if another file has that name, and its descriptor.

    Raises:
        OSError: When no log can be made.

    """
    for number in itertools.islice(itertools.count(1), _NAMES):
        path = usual if number == 1 else usual.with_name(f"{usual.stem}-{number}.log")
        try:
            fd = create_own(str(path), os.O_RDWR | os.O_APPEND)
            os.write(fd, _FIRST[log_format])
        except FileExistsError:
            try:
                fd = os.open(path, os.O_RDWR | os.O_APPEND | _SAFE)
            except OSError:
                continue  # a link, or another user's
            if not _is_ours(fd):
                os.close(fd)
                continue
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return path, fd
        os.close(fd)  # the log of another running supervisor
    raise FileExistsError(17, f"{_NAMES} files of such a name are there already", str(usual))


_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def remove(path: Path, fd: int) -> None:
    """Remove a log that is open, if its name is still its own."""
    with contextlib.suppress(OSError):
        mine, named = os.fstat(fd), os.lstat(path)
        if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino) and stat.S_ISREG(
            mine.st_mode
        ):
            path.unlink()


def _is_ours(fd: int) -> bool:
    found = os.fstat(fd)
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & 0o077
        and found.st_nlink == 1
        and any(os.pread(fd, len(first), 0) == first for first in _FIRST.values())
    )
