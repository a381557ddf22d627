"""The folder of a checkpoint: one process at a time, and nothing but a checkpoint in it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from pathlib import Path

from velo.errors import CheckpointError

with contextlib.suppress(ImportError):  # Windows has none, and no checkpoints
    import fcntl

__all__ = [
    "STATE",
    "Claim",
    "checkpoints_in",
    "claim",
    "claim_beside",
    "exists",
    "holder",
    "is_own",
]

STATE = "state.sqlite"
"""The file that holds everything; SQLite adds two more while a process has it open."""

_LOCK = "lock"
# So many working copies of one checkpoint may be in use on a machine.
_COPIES = 100
# `struct flock` of C: type, where offsets begin, start, length, process.
_FLOCK = "hhqqi4x"
# The files of a checkpoint, and those of one that a killed process has not finished.
_OWN = (_LOCK, STATE, f"{STATE}-", f"{STATE}.new")
# The folders that this process has claimed: a lock of `fcntl` does not exclude its own process.
_claimed: set[tuple[int, int, int]] = set()


class InUse(CheckpointError):
    """A folder is claimed already, by this process or by another one."""


class Claim:
    """The right to write to the checkpoint in a folder, until `release` or the process's death.

    Locks of `fcntl`, unlike those of `flock`, are no child's: neither a worker nor a process that
    was forked keeps a folder locked whose owner is dead.
    """

    def __init__(self, fd: int, name: tuple[int, int, int]) -> None:
        self._fd = fd
        self._name = name

    def release(self) -> None:
        """Give it back."""
        if self._name in _claimed and self._name[0] == os.getpid():
            _claimed.discard(self._name)
            os.close(self._fd)


def exists(path: Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return (path / STATE).exists()


def claim(path: Path, *, of_functions: bool = False) -> Claim:
    """Lock the folder of a checkpoint, and create it where there is none.

    With `of_functions`, it is a folder of checkpoints, one for each function.

    Raises:
        CheckpointError: When another process has it, it cannot be written to, or it holds something
            else; and on another system than Linux.

    """
    if sys.platform != "linux":
        raise CheckpointError(f"checkpoints need the locks of Linux, and this is {sys.platform}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (_refuse_others if of_functions else _refuse_foreign)(path)
        _refuse_own(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path / _LOCK, flags, 0o600)
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(
            f"`{path}` is no folder; a checkpoint is a folder: name another"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"there is no room for a checkpoint at `{path}`") from error
        why = (error.strerror or str(error)).lower()
        raise CheckpointError(
            f"cannot write a checkpoint to `{path}`: {why}; name a folder that this user may "
            "write to"
        ) from error
    try:
        return _lock(path, fd)
    except BaseException:
        os.close(fd)
        raise


def claim_beside(path: Path) -> tuple[Path, Claim]:
    """Lock the folder of a working copy; where that is in use, one beside it.

    A program that stands still keeps its working copy, and one on the same machine takes over.

    Raises:
        CheckpointError: As `claim`.

    """
    for number in range(2, _COPIES + 2):
        try:
            return path, claim(path)
        except InUse:
            path = path.with_name(f"{path.name.partition('-')[0]}-{number}")
    return path, claim(path)


def _refuse_foreign(path: Path) -> None:
    names = set(os.listdir(path))
    if STATE in names:
        return
    if f"{STATE}-wal" in names:
        raise CheckpointError(
            f"the checkpoint `{path}` is torn: `{STATE}` is missing, and `{STATE}-wal` is there; "
            "restore the folder from a copy, or remove it to begin anew"
        )
    if foreign := sorted(name for name in names if not name.startswith(_OWN)):
        more = "" if len(foreign) == 1 else f" and {len(foreign) - 1:,} more"
        raise CheckpointError(
            f"`{path}` holds no checkpoint, and other files: `{foreign[0]}`{more}; name a new or "
            "an empty folder"
        )


def _refuse_others(path: Path) -> None:
    names = sorted(os.listdir(path))
    if STATE in names:
        raise CheckpointError(
            f"`{path}` is the checkpoint of one function; a supervisor keeps a folder of "
            "checkpoints, one for each function: name another folder"
        )
    for name in names:
        if name != _LOCK and not is_own(path / name):
            raise CheckpointError(
                f"`{path}` holds `{name}`, which is no checkpoint of a function; name a new or an "
                "empty folder"
            )


def is_own(path: Path) -> bool:
    """Whether a folder holds nothing but a checkpoint, which may not be finished."""
    return path.is_dir() and all(name.startswith(_OWN) for name in os.listdir(path))


def checkpoints_in(path: Path) -> list[Path]:
    """Return the folders of checkpoints in a folder of a supervisor, in their order."""
    try:
        return sorted(one.parent for one in path.glob(f"*/{STATE}"))
    except OSError:
        return []


def _refuse_own(path: Path) -> None:
    """Refuse a folder that this process has: opening and closing its lock would unlock it."""
    with contextlib.suppress(FileNotFoundError):
        if _name(os.stat(path / _LOCK)) in _claimed:
            raise InUse(f"the checkpoint `{path}` is in use by this process already")


def _name(file: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), file.st_dev, file.st_ino


def _lock(path: Path, fd: int) -> Claim:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise CheckpointError(
                f"cannot lock the checkpoint `{path}`: {(error.strerror or str(error)).lower()}; "
                "it has to be on a disk of this machine"
            ) from error
        raise InUse(
            f"the checkpoint `{path}` is in use by {_holder(fd)}; one process at a time can write "
            "to it: stop that one, or name another folder"
        ) from None
    name = _name(os.fstat(fd))
    _claimed.add(name)
    with contextlib.suppress(OSError):  # a full disk: only a message is poorer for it
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    return Claim(fd, name)


def holder(path: Path) -> str | None:
    """Name the process that has claimed a folder; None when none has."""
    try:
        if _name(os.stat(path / _LOCK)) in _claimed:
            return f"process {os.getpid()}"
        fd = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))[0]
        return None if kind == fcntl.F_UNLCK else _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    pid, _, host = os.pread(fd, 300, 0).decode(errors="replace").strip().partition(" ")
    if not pid.isdecimal():
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
