"""The Kafka broker of `connect`: a running one, or one that the tools of this checkout start."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SETTING", "NoBroker", "broker"]

SETTING = "VELO_BENCH_KAFKA"
START = 60.0  # seconds until a broker of our own answers
ANSWER = 10.0  # seconds until one that is named answers

TOOL = Path(__file__).parents[3] / "tools" / "kafka_broker.py"


class NoBroker(Exception):
    """There is no broker; the message says how to get one."""


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Give the addresses of a broker, which this starts and stops unless `SETTING` names one.

    Raises:
        NoBroker: There is none, or it does not answer.

    """
    try:
        import confluent_kafka  # noqa: F401
    except ImportError:
        raise NoBroker(
            "confluent-kafka is not installed (pip install 'velo-stream[kafka]')"
        ) from None
    if servers := os.environ.get(SETTING):
        _wait_for(servers, ANSWER)
        yield servers
        return
    if not TOOL.exists():
        raise NoBroker(f"no Kafka broker: set {SETTING}=HOST:PORT, or run in a checkout of velo")
    check = "import kafka_broker; raise SystemExit(not kafka_broker.installed())"
    if subprocess.run([sys.executable, "-c", check], cwd=TOOL.parent, check=False).returncode:
        raise NoBroker(
            f"no Kafka broker: set {SETTING}=HOST:PORT, or run `python {TOOL} install` once"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="velo-bench-kafka-") as folder:
        process = subprocess.Popen(
            [sys.executable, str(TOOL), "run", "--folder", folder, "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(f"127.0.0.1:{port}", START, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(servers: str, seconds: float, process: subprocess.Popen[bytes] | None = None) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    deadline = time.monotonic() + seconds
    while True:
        try:
            admin.list_topics(timeout=1)
            return
        except KafkaException as error:
            if process is not None and process.poll() is not None:
                raise NoBroker(f"the Kafka broker of {TOOL} does not start") from None
            if time.monotonic() > deadline:
                reason = error.args[0].str()
                raise NoBroker(f"no Kafka broker answers at {servers}: {reason}") from None
