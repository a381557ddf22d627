"""Virtual environments of peers that must not stand beside velo, each made on demand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Refused", "jar", "made", "python_of", "version_of"]

INSTALL_LIMIT = 900.0

READY = "ready"  # the name of the file that marks a complete environment


class Refused(Exception):
    """A peer cannot be installed; the message has the reason."""


def made(requirements: Sequence[str]) -> str | None:
    """Give the interpreter of an environment with these packages; None where there is none."""
    folder = _folder(requirements)
    return str(folder / "bin" / "python") if (folder / READY).exists() else None


def python_of(requirements: Sequence[str], artifact: str | None = None) -> str:
    """Give the interpreter of an environment, and make that first where there is none.

    Args:
        requirements: Its packages; the first one names it.
        artifact: A jar of Maven Central that it needs too, as `group:name:version`.

    Raises:
        Refused: pip does not install it, for example because it has no wheel for this Python.

    """
    if (there := made(requirements)) is not None:
        return there
    folder = _folder(requirements)
    python = str(folder / "bin" / "python")
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    _call([python, "-m", "pip", "install", "-q", *requirements])
    if artifact is not None:
        copy = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}"]
        _call([*copy, f"-DoutputDirectory={folder / 'jars'}"])
    (folder / READY).touch()
    return python


def jar(requirements: Sequence[str]) -> str:
    """Give the jar of an environment; empty where it has none."""
    return next(map(str, (_folder(requirements) / "jars").glob("*.jar")), "")


def version_of(python: str, package: str) -> str:
    """Ask an interpreter for the version of a package that it has.

    Raises:
        Refused: It does not have it.

    """
    ask = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    return _call([python, "-I", "-c", ask, package]).strip()


def _folder(requirements: Sequence[str]) -> Path:
    """Give the place of an environment: one for each version of the peer and of Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    package = re.sub(r"[^\w.]+", "-", Path(requirements[0]).name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "velo" / "bench" / f"{package}-python{version}"


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False
        )
    except FileNotFoundError:
        raise Refused(f"`{command[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise Refused(f"`{' '.join(command)}` takes more than {INSTALL_LIMIT:g} s") from None
    if done.returncode:
        output = f"{done.stdout}\n{done.stderr}".splitlines()
        lines = [line for line in output if line.strip() and not line.startswith("[notice]")]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1:] or "")
        raise Refused(f"`{' '.join(command)}` fails: {reason}")
    return done.stdout
