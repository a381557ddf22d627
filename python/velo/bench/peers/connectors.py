"""The peers of `connect`, each in a virtual environment of its own, which is made on demand."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from velo.bench.connect_kafka import Job, measured
from velo.bench.floors import Measured

__all__ = ["CONNECTORS", "Connector", "Refused", "kafka", "made", "python_of"]

LIMIT = 100.0  # seconds of a run
INSTALL_LIMIT = 600.0

READY = "ready"  # the name of the file that marks a complete environment


class Connector(NamedTuple):
    """One peer.

    Attributes:
        script: Its program, in this folder, which does not import velo.
        requirements: The packages that it needs.

    """

    script: str
    requirements: tuple[str, ...]


# orjson is what velo and Quix Streams use for JSON; Faust takes it where it is there.
CONNECTORS = {
    "Faust": Connector("kafka_faust.py", ("faust-streaming==0.15.3", "orjson")),
    "Quix Streams": Connector("kafka_quix.py", ("quixstreams==3.28.1",)),
    "Bytewax": Connector("kafka_bytewax.py", ("bytewax[kafka]==0.21.1", "orjson")),
}


class Refused(Exception):
    """A peer cannot be installed; the message has pip's reason."""


def made(name: str) -> str | None:
    """Give the interpreter of a peer; None where its environment is not made."""
    folder = _folder(name)
    return str(folder / "bin" / "python") if (folder / READY).exists() else None


def python_of(name: str) -> str:
    """Give the interpreter of a peer, and make its environment first where there is none.

    Raises:
        Refused: pip does not install it, for example because it has no wheel for this Python.

    """
    if (there := made(name)) is not None:
        return there
    folder = _folder(name)
    python = str(folder / "bin" / "python")
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    _call([python, "-m", "pip", "install", "-q", *CONNECTORS[name].requirements])
    (folder / READY).touch()
    return python


def _folder(name: str) -> Path:
    """Give the place of an environment: one for each version of the peer and of Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    package = re.sub(r"[^\w.]+", "-", Path(CONNECTORS[name].requirements[0]).name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "velo" / "bench" / f"{package}-python{version}"


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"`{' '.join(command)}` takes more than {INSTALL_LIMIT:g} s") from None
    if done.returncode:
        output = f"{done.stdout}\n{done.stderr}".splitlines()
        lines = [line for line in output if line.strip() and not line.startswith("[notice]")]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1:] or "")
        raise Refused(f"`{' '.join(command)}` fails: {reason}")


def kafka(name: str, python: str, servers: str, source: str, count: int) -> Measured:
    """Run a peer between two topics."""

    def run(job: Job) -> None:
        script = Path(__file__).parent / CONNECTORS[name].script
        try:
            done = subprocess.run(
                [python, "-P", str(script), json.dumps(dataclasses.asdict(job))],
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {LIMIT:g} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])

    return measured(servers, source, count, run)
