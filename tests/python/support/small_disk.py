"""A disk that is soon full."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def mounted(disk, size):
    """Mounts a disk of this size in a new folder; skips the test where that is not allowed."""
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def enlarge(disk, size):
    """Gives a mounted disk this size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
