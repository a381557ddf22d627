"""The peers of `connect`, each in a virtual environment of its own, which is made on demand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from velo.bench.connect_kafka import Job, measured
from velo.bench.floors import Measured
from velo.bench.measure import Plan
from velo.bench.peers import environments

__all__ = ["CONNECTORS", "LASTING", "Connector", "kafka", "made", "python_of", "pythons"]

LIMIT = 100.0  # seconds of a run


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

LASTING = {"Quix Streams": "RocksDB", "Bytewax": "its recovery in SQLite"}
"""Those that can keep states on the disk, and where."""


def made(name: str) -> str | None:
    """Give the interpreter of a peer; None where its environment is not made."""
    return environments.made(CONNECTORS[name].requirements)


def python_of(name: str) -> str:
    """Give the interpreter of a peer, and make its environment first where there is none.

    Raises:
        Refused: pip does not install it, for example because it has no wheel for this Python.

    """
    return environments.python_of(CONNECTORS[name].requirements)


def pythons(plan: Plan, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Give those of these peers that take part, with their interpreters.

    A peer that pip does not install is reported and left out.
    """
    for name in names:
        if plan.peers is None or name in plan.peers:
            plan.say(f"an environment for {name}")
            try:
                python = python_of(name)
            except environments.Refused as error:
                plan.warn(f"{name}: {error}")
            else:
                yield name, python


def kafka(
    name: str, python: str, servers: str, source: str, count: int, lasts: bool = False
) -> Measured:
    """Run a peer between two topics; with `lasts`, its states are kept each second."""

    def run(job: Job) -> None:
        job = dataclasses.replace(job, lasts=lasts)
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
