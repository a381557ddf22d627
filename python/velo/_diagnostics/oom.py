"""Whether the kernel has ended a process of this one's cgroup for want of memory.

Such a process is gone by `SIGKILL`, as one that somebody has killed. The kernel counts them.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["remember", "said"]

_ROOT = "/sys/fs/cgroup"

# How many have been seen; None before the first look, and where the kernel does not tell.
_seen: int | None = None


def remember() -> None:
    """Note how many there have been so far, the first time this is called."""
    global _seen
    if _seen is None:
        _seen = _count()


def said() -> str | None:
    """Return what to say of a process that was just killed, if that was one of them."""
    global _seen
    if _seen is None or (count := _count()) is None or count <= _seen:
        return None
    _seen += 1  # each of them is told of once
    return (
        "the kernel ended a process of this cgroup for want of memory: raise its limit "
        "(`MemoryMax=`, `--memory` of a container), use fewer `workers`, or bound them with "
        "`max_worker_memory`"
    )


def _count() -> int | None:
    for path in _files():
        with contextlib.suppress(OSError), open(path) as lines:
            for line in lines:
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    return None


def _files() -> list[str]:
    """Return where the count may be, for both kinds of cgroups."""
    files = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if not controllers:
                root, name = _ROOT, "memory.events"
            elif "memory" in controllers.split(","):
                root, name = f"{_ROOT}/memory", "memory.oom_control"
            else:
                continue
            # In a container the path is the host's, and its own cgroup is mounted as the root.
            files += [os.path.join(root, path.lstrip("/"), name), os.path.join(root, name)]
    return files
