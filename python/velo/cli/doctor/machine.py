"""Cores and memory: those of the machine, and the share that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from velo import _core
from velo.cli.doctor.check import OK, WARN, Check, bytes_of, read

__all__ = ["cgroups", "cores", "memory", "overcommit"]

# The memory of a working worker beyond that which it shares with its zygote.
_WORKER_BYTES = 32 << 20
_ROOT = Path("/sys/fs/cgroup")


def cores() -> Check:
    """Compare the cores of the machine with those that this process may use."""
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    usable = _core.usable_cores()
    found = f"{usable} usable, so as many workers by default"
    reasons = []
    if allowed < there:
        reasons.append(f"affinity allows {allowed}")
    if quota is not None and quota < allowed:
        reasons.append(f"the cgroup's quota is {quota:g}")
    if reasons:
        found += f" ({there} in the machine; {' and '.join(reasons)})"
    advice = ""
    if quota is not None and quota < 1:
        advice = "less than one core: give the container more, for example `--cpus=2`"
    elif usable == 1:
        advice = "workers and their client take turns on it: process mode gains nothing here"
    return Check("cores", WARN if advice else OK, found, advice)


def memory() -> Check:
    """Compare the free memory with the need of the workers."""
    lines = (line.split(":") for line in (read("/proc/meminfo") or "").splitlines())
    meminfo = {name: int(rest.split()[0]) << 10 for name, rest in lines}
    available = meminfo.get("MemAvailable", 0)
    found = f"{bytes_of(available)} available of {bytes_of(meminfo.get('MemTotal', 0))}"
    limit = memory_limit()
    if limit is not None and limit[0] < meminfo.get("MemTotal", math.inf):
        most, used = limit
        found += f"; the cgroup allows {bytes_of(most)} and uses {bytes_of(used)}"
        available = min(available, max(most - used, 0))
    need = _WORKER_BYTES * (_core.usable_cores() + 1)
    if available < need:
        advice = (
            f"workers need about {bytes_of(need)}: use fewer (`workers=`), or raise `memory.max` "
            "of the cgroup (`--memory` of a container)"
        )
        return Check("memory", WARN, found, advice)
    return Check("memory", OK, found)


def overcommit() -> Check:
    """Check the system's policy on promising more memory than it has."""
    mode = read("/proc/sys/vm/overcommit_memory")
    meaning = {"0": "heuristic", "1": "always", "2": "never"}.get(mode or "", "unknown")
    found = f"vm.overcommit_memory is {mode} ({meaning})"
    if mode == "2":
        advice = "forking workers may fail: `sysctl vm.overcommit_memory=0`"
        return Check("overcommit", WARN, found, advice)
    return Check("overcommit", OK, found)


def cgroups() -> list[tuple[str, Path]]:
    """Return the cgroup folders of this process with their controllers, the innermost first."""
    folders = []
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        roots = [_ROOT / name for name in controllers.split(",")] if controllers else []
        for root in roots or [_ROOT, _ROOT / "unified"]:
            inner = root / path.lstrip("/")
            # In a container the path is the host's, and its own cgroup is mounted as the root.
            places = [inner, *inner.parents] if inner.is_dir() else [root]
            folders += [(controllers, place) for place in places if place.is_relative_to(root)]
    return folders


def cpu_quota() -> float | None:
    """Return the number of cores that the cgroups allow; None if they have no quota."""
    quotas = []
    for _, folder in cgroups():
        two = (read(folder / "cpu.max") or "max").split()
        if two[0] != "max":
            quotas.append(int(two[0]) / int(two[1]))
        one = int(read(folder / "cpu.cfs_quota_us") or -1)
        period = int(read(folder / "cpu.cfs_period_us") or 0)
        if one > 0 and period > 0:
            quotas.append(one / period)
    return min(quotas, default=None)


def memory_limit() -> tuple[int, int] | None:
    """Return the tightest limit of the cgroups, and the memory in use under it."""
    limits = []
    for _, folder in cgroups():
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = read(folder / most)
            if limit and limit != "max":
                limits.append((int(limit), int(read(folder / used) or 0)))
    return min(limits, default=None)
