"""Whether the kernel has killed a process because the cgroup of this one was out of memory.

It uses `SIGKILL`, like an administrator. But the kernel counts such kills.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["remember", "said"]

_ROOT = "/sys/fs/cgroup"

# The count when it was read last. None: it was not read yet, or the kernel does not show it.
_seen: int | None = None


def remember() -> None:
    """Note the count so far, in the first call."""
    global _seen
    if _seen is None:
        _seen = _count()


def said() -> str | None:
    """Return a note about a process that was just killed, if the kernel has killed it."""
    global _seen
    if _seen is None or (count := _count()) is None or count <= _seen:
        return None
    _seen += 1  # one note for each kill
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
    """Return the files that may have the count, for both versions of cgroups."""
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
            # In a container, the path is the host's, and the own cgroup is mounted as the root.
            files += [os.path.join(root, path.lstrip("/"), name), os.path.join(root, name)]
    return files
