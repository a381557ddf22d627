"""What the processes of a program take: processor time and memory, as Linux counts them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["marked", "memory", "processor_time"]


def marked(mark: str) -> list[int]:
    """Give the pids of the processes that have `mark`, a `NAME=VALUE`, in their environment.

    Children inherit it, also those that leave their parent.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended, or is somebody else's
            if mark.encode() in variables:
                found.append(int(folder.name))
    return found


def processor_time(pid: int) -> int:
    """Give the nanoseconds that the threads of a process have run."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


def memory(pid: int) -> int:
    """Give the bytes of a process; what several share is divided between them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no Pss")
