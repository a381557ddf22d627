"""The same job by each alternative: its programs, and the figures of one run of each."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import signal
import subprocess
import tempfile
import time
import tokenize
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from velo.bench import redis_server
from velo.bench.connect_job import Checked
from velo.bench.connect_kafka import CLOCK, PARTITIONS, Job, read, topic
from velo.bench.floors import Measured
from velo.bench.peers import environments
from velo.bench.peers.connectors import CONNECTORS
from velo.bench.processes import marked, memory, processor_time

__all__ = ["ALTERNATIVES", "INLINE", "PROCESS", "REDIS", "Alternative", "lines", "measured"]

INLINE, PROCESS, REDIS = "velo, inline", "velo, process mode", "Redis and a function"

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 120.0  # seconds without a result: as long as a cluster may take to start
SETTLE = 2.0  # seconds from the last result until the program is idle
TICK = 0.001  # seconds: the broker's clock
STOP = 5.0  # seconds that a program may take to end


class Alternative(NamedTuple):
    """One of them.

    Attributes:
        program: Its program.
        requirements: The packages of its environment.
        artifact: A jar of Maven Central that it needs too.
        heavy: Whether it is installed only when it is named.

    """

    program: str
    requirements: tuple[str, ...]
    artifact: str | None = None
    heavy: bool = False

    @property
    def version(self) -> str:
        """Its version; empty where it is no package."""
        package, _, version = self.requirements[0].partition("==")
        return "" if package.startswith("redis") else version

    def python(self) -> str:
        """Give its interpreter; see `environments.python_of`."""
        return environments.python_of(self.requirements, self.artifact)


ALTERNATIVES = {
    REDIS: Alternative("redis_job.py", ("redis[hiredis]==8.1.0", "confluent-kafka", "orjson")),
    "Faust": Alternative("faust_job.py", CONNECTORS["Faust"].requirements),
    "Quix Streams": Alternative("quix_job.py", CONNECTORS["Quix Streams"].requirements),
    "Bytewax": Alternative("bytewax_job.py", CONNECTORS["Bytewax"].requirements),
    "PyFlink": Alternative(
        "flink_job.py",
        ("apache-flink==2.0.2", "setuptools<81"),
        "org.apache.flink:flink-sql-connector-kafka:4.0.1-2.0",
        heavy=True,
    ),
}


def lines(name: str) -> int:
    """Count the lines of code of a program, without comments, docstrings and empty lines.

    The command that starts velo says where events come from and go to, so it counts as one.
    """
    ours = name in (INLINE, PROCESS)
    program = "velo_job.py" if ours else ALTERNATIVES[name].program
    return _lines_of((PROGRAMS / program).read_text()) + ours


def _lines_of(source: str) -> int:
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty and token.string:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings)


def measured(
    name: str, python: str, servers: str, source: str, count: int, idle: float
) -> Measured:
    """Start a program, have it handle all events, and leave it idle for some seconds.

    Returns:
        `start`: seconds from the start of the program until the broker has its first result;
        `rate`: events per second behind the first results; `cpu`: per cent of one core
        while it is idle; `memory`: MiB then, of all of its processes.

    Raises:
        RuntimeError: Results are missing or wrong, or the program ends.

    """
    mark = f"VELO_BENCH_PROGRAM={uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(topic(servers, "results", partitions=1, config=CLOCK))
        job = Job(servers, source, results, f"velo-bench-{uuid.uuid4().hex}", count)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="velo-bench-"))
        environment = _environment(job, name, python) | dict([mark.split("=")])
        checked = Checked(count, copied=False)
        stack.callback(_stop_all, mark)
        if name == REDIS:
            address = stack.enter_context(redis_server.server(environment))
            environment["REDIS_PORT"] = address.rpartition(":")[2]
        began = time.time()
        with _program(_command(name, python, job), environment, folder) as program:
            times = read(servers, results, checked, partitions=1, patience=PATIENCE, alive=program)
            time.sleep(min(SETTLE, idle))
            pids = marked(mark)
            before, began_idle = sum(map(processor_time, pids)), time.perf_counter()
            time.sleep(idle)
            used = sum(map(processor_time, pids)) - before
            took = time.perf_counter() - began_idle
            program()
            return {
                "start": times[0] - began,
                "rate": _rate(times),
                "cpu": used / 1e9 / took * 100,
                "memory": sum(map(memory, pids)) / 2**20,
            }


def _rate(times: list[float]) -> float:
    """Give the results per second behind the first ones, which are stored in one go."""
    first, last = times[0], times[-1]
    later = sum(stored > first for stored in times)
    return later / (last - first) if later else len(times) / TICK


def _command(name: str, python: str, job: Job) -> list[str]:
    if name in (INLINE, PROCESS):
        return [
            *(python, "-m", "velo", "run", f"{PROGRAMS / 'velo_job.py'}:spending"),
            *("-i", f"kafka://{job.servers}/{job.source}?group={job.group}", "-k", "user"),
            *("-o", f"kafka://{job.servers}/{job.results}"),
            *("--mode", "inline" if name == INLINE else "process"),
        ]
    program = ALTERNATIVES[name].program
    if name == "Bytewax":
        return [python, "-m", "bytewax.run", program.removesuffix(".py")]
    return [
        python,
        str(PROGRAMS / program),
        *(["worker", "-l", "error"] if name == "Faust" else []),
    ]


def _environment(job: Job, name: str, python: str) -> dict[str, str]:
    environment = dict(os.environ)
    if name in ALTERNATIVES:
        # As in an activated environment: Flink starts its own Python processes.
        environment["PATH"] = f"{Path(python).parent}{os.pathsep}{environment.get('PATH', '')}"
        environment["PYTHONPATH"] = str(PROGRAMS)
        environment["JAR"] = environments.jar(ALTERNATIVES[name].requirements)
    return environment | {
        "SERVERS": job.servers,
        "SOURCE": job.source,
        "RESULTS": job.results,
        "GROUP": job.group,
        "PARTITIONS": str(PARTITIONS),
    }


class _Program:
    """A program that runs until it is stopped."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def __call__(self) -> None:
        """Raise if it has ended."""
        if (code := self._process.poll()) is not None:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"the program has ended with code {code}: {''.join(said[-1:])}")


@contextlib.contextmanager
def _program(command: list[str], environment: dict[str, str], folder: str) -> Iterator[_Program]:
    log = Path(folder, "log")
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        yield _Program(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stop_all(mark: str) -> None:
    """Kill what a program has left behind, each of which has the mark of this run."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
