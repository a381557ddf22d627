"""Looks for leftovers of earlier processes, and checks the folder of the sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from velo.cli.children import children
from velo.cli.doctor.check import OK, WARN, Check, bytes_of

__all__ = ["processes", "runtime_folder", "shared_memory"]

_SHM = Path("/dev/shm")
_MAGIC = b"velolink"


def shared_memory() -> Check:
    """Look for named segments that no process uses.

    Velo for Python uses memory without a name, which the kernel releases. The named backend of the
    Rust crate leaves its segment when its creator is killed.
    """
    name = "shared memory"
    if not _SHM.is_dir():
        found = "no /dev/shm; only the named backend of the Rust crate needs it"
        return Check(name, OK, found)
    room = os.statvfs(_SHM)
    found = f"/dev/shm has {bytes_of(room.f_bavail * room.f_frsize)} free"
    segments = [path for path in _SHM.iterdir() if _is_segment(path)]
    mapped = _mapped() if segments else set()
    stale = [str(path) for path in segments if str(path) not in mapped]
    if stale:
        shown = " ".join(stale[:3]) + (" ..." if len(stale) > 3 else "")
        found += f"; {len(stale)} segments of processes that are gone"
        return Check(name, WARN, found, f"remove them: `rm {shown}`")
    return Check(name, OK, f"{found}, no segment left behind")


def runtime_folder() -> Check:
    """Check the folder of the standalone supervisor's socket: its permissions, stale sockets."""
    folder = runtime_path()
    try:
        status = folder.lstat()
    except FileNotFoundError:
        parent = folder.parent
        if os.access(parent, os.W_OK | os.X_OK):
            return Check("runtime folder", OK, f"{folder} will be made when it is needed")
        advice = "set `XDG_RUNTIME_DIR` to a folder of yours"
        return Check("runtime folder", WARN, f"{parent} cannot be written to", advice)
    found = f"{folder}, mode {stat.S_IMODE(status.st_mode):04o}"
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        advice = (
            f"a standalone supervisor refuses it: remove it, or own it (`chown {os.geteuid()}`)"
        )
        return Check("runtime folder", WARN, f"{found}, owned by {status.st_uid}", advice)
    if status.st_mode & 0o077:
        return Check("runtime folder", WARN, f"{found}: others may enter", f"`chmod 700 {folder}`")
    stale = [path for path in folder.iterdir() if path.is_socket() and not _answers(path)]
    if stale:
        shown = " ".join(str(path) for path in stale)
        return Check("runtime folder", WARN, f"{found}; nobody listens at {shown}", f"`rm {shown}`")
    return Check("runtime folder", OK, found)


def processes() -> Check:
    """Look for processes of functions that have outlived their worker."""
    found = list(children())
    gone = [child for child in found if not child.alive]
    name = "processes of functions"
    if not gone:
        return Check(name, OK, f"{len(found)} running, all with their worker")
    shown = ", ".join(f"{child.pid} ({child.command})" for child in gone[:3])
    more = ", ..." if len(gone) > 3 else ""
    advice = "a function started them, and they run on: end them (`kill PID`) if nobody needs them"
    return Check(name, WARN, f"{len(gone)} have outlived their worker: {shown}{more}", advice)


def runtime_path() -> Path:
    """Return the folder in which a standalone supervisor listens."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return Path(runtime) / "velo"
    return Path(f"/tmp/velo-{os.geteuid()}")


def _is_segment(path: Path) -> bool:
    with contextlib.suppress(OSError):
        if path.is_file() and path.lstat().st_uid == os.geteuid():
            with path.open("rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
    return False


def _mapped() -> set[str]:
    """Return the files in /dev/shm that processes have mapped."""
    files = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            for line in maps.read_text().splitlines():
                path = line.rpartition(" ")[2]
                if path.startswith(f"{_SHM}/"):
                    files.add(path)
    return files


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
