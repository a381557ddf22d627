"""A cgroup below the one that the tests run in, where they may make one."""

import contextlib
import os
import time
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


def _own(controller):
    """The folder of this process's cgroup for a controller, and whether it is of the first kind."""
    with open("/proc/self/cgroup") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    for _, controllers, path in lines:
        if controller in controllers.split(","):
            return ROOT / controller / path.lstrip("/"), True
    for _, controllers, path in lines:
        if not controllers:
            return ROOT / path.lstrip("/"), False
    pytest.skip("this machine has no cgroups")


@contextlib.contextmanager
def cgroup(controller, limits):
    """A cgroup with the first of these limits that its kind knows; skips where none can be made.

    Gives its folder, and what a child process calls before it runs its program, to be in it.
    """
    own, first = _own(controller)
    folder = own / f"velo-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        for name, value in limits[0 if first else 1].items():
            try:
                (folder / name).write_text(str(value))
            except OSError as error:
                pytest.skip(f"its limits cannot be set here: {error}")
        yield folder, lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        deadline = time.monotonic() + 10
        while True:
            try:
                folder.rmdir()
                break
            except OSError:  # its last processes are still on their way out
                assert time.monotonic() < deadline, (folder / "cgroup.procs").read_text()
                time.sleep(0.02)
