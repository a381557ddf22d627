"""The limits of this process that velo can run into."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from velo import _core
from velo.cli.doctor.check import FAIL, OK, WARN, Check, bytes_of, read
from velo.cli.doctor.machine import cgroups

__all__ = ["address_space", "file_size", "open_files", "processes"]

# Descriptors of a client: Python and its event loop, the supervisor, and each worker.
_BASE_FDS = 40
_WORKER_FDS = 12
# The descriptors that suffice for a web server or a test suite as well.
_COMFORTABLE_FDS = 1024
# Address space of a link with the smallest heaps, and with the usual ones.
_SMALLEST_LINK = 192 << 20
_USUAL_LINK = 33 << 30
_UNLIMITED = resource.RLIM_INFINITY


def open_files() -> Check:
    """Compare the limit of open files with the need of the workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = len(os.listdir("/proc/self/fd")) + _BASE_FDS + _WORKER_FDS * _core.usable_cores()
    found = f"at most {_count(soft)}; velo takes about {need} with a worker on each core"
    how = "`ulimit -n 4096`, `LimitNOFILE=4096` in a unit, `--ulimit nofile=4096` of a container"
    if soft != _UNLIMITED and soft < need:
        return Check("open files", FAIL, found, f"raise the limit: {how}")
    if soft != _UNLIMITED and soft < _COMFORTABLE_FDS:
        above = hard == _UNLIMITED or hard > soft
        limit = f"; the hard limit is {_count(hard)}" if above else ""
        return Check("open files", WARN, found + limit, f"raise it for a server: {how}")
    return Check("open files", OK, found)


def processes() -> Check:
    """Compare the limits of processes with the need of the workers."""
    cores = _core.usable_cores()
    need = 2 * cores + 2  # each worker has a watchdog thread; the supervisor; the zygote
    left, found = [], []
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != _UNLIMITED:
        used = tasks_of(os.getuid())
        exempt = os.geteuid() == 0
        found.append(f"{used} of {soft} of this user" + (", who is exempt" if exempt else ""))
        if not exempt:
            left.append(soft - used)
    for _, folder in cgroups():
        most = read(folder / "pids.max")
        if most and most != "max":
            used = int(read(folder / "pids.current") or 0)
            found.append(f"{used} of {most} of the cgroup")
            left.append(int(most) - used)
    what = "; ".join(found) or "not limited"
    what += f"; velo takes {need} with a worker on each core"
    if left and min(left) < need:
        advice = (
            "raise the limit: `ulimit -u 4096`, `LimitNPROC=`, `TasksMax=` in a unit, "
            "`--pids-limit` of a container"
        )
        return Check("processes", FAIL if min(left) < 4 else WARN, what, advice)
    return Check("processes", OK, what)


def address_space() -> Check:
    """Compare the limit of address space with the length of a link."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == _UNLIMITED:
        return Check("address space", OK, "not limited; a link to a worker is 32 GiB long, unused")
    statm = (read("/proc/self/statm") or "0").split()
    left = soft - int(statm[0]) * resource.getpagesize()
    found = f"{bytes_of(left)} left of {bytes_of(soft)}"
    how = "`ulimit -v unlimited`, `LimitAS=infinity` in a unit"
    # The client and its supervisor map each link once each.
    workers = 2 * _core.usable_cores()
    if left < 2 * _SMALLEST_LINK:
        return Check("address space", FAIL, found, f"too little for any link: {how}")
    if left < workers * _USUAL_LINK:
        advice = f"links will be shorter than their 32 GiB, and large events may not fit: {how}"
        return Check("address space", WARN, found, advice)
    return Check("address space", OK, found)


def file_size() -> Check:
    """Compare the limit of file sizes, which holds for shared memory too, with a link's length."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == _UNLIMITED:
        return Check("file size", OK, "not limited")
    found = f"at most {bytes_of(soft)}, which holds for shared memory too"
    how = "`ulimit -f unlimited`, `LimitFSIZE=infinity` in a unit"
    if soft < _SMALLEST_LINK:
        return Check("file size", FAIL, found, f"too little for any link: {how}")
    if soft < _USUAL_LINK:
        return Check("file size", WARN, found, f"large events may not fit: {how}")
    return Check("file size", OK, found)


def tasks_of(user: int) -> int:
    """Count the processes and threads of a user, as the system does for its limit."""
    tasks = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        status = dict(
            line.split(":", 1)
            for line in (read(folder / "status") or "").splitlines()
            if ":" in line
        )
        if status and int(status["Uid"].split()[0]) == user:
            tasks += int(status["Threads"])
    return tasks


def _count(limit: int) -> str:
    return "unlimited" if limit == _UNLIMITED else f"{limit}"
