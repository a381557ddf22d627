"""Describes the machine and the software that the figures come from."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import velo
from velo import _core

__all__ = ["describe"]


# The packages of peers whose versions are listed, if they are installed.
PACKAGES = [
    "numpy",
    "uvloop",
    "faster-fifo",
    "pyzmq",
    "iceoryx2",
    "ray",
    "bytewax",
    "ormsgpack",
    "msgpack",
    "confluent-kafka",
    "redis",
]


def describe() -> dict[str, str]:
    """Describe machine, system and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "velo": velo.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "usable cores": str(_core.usable_cores()),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
