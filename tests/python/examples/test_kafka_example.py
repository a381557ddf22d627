"""The example with Kafka: a program that is killed in the middle loses nothing.

Its runs have a folder that no other example uses, as tests run side by side.
"""

import re

import pytest

from example_runs import needs_kafka, run_example, run_with_example
from helpers import HANG, alive


@pytest.fixture(autouse=True)
def kafka_is_there():
    needs_kafka()


def test_every_flight_has_a_result_after_a_kill():
    output = run_example("kafka/run.py", "--flights", 20000)
    assert "\n0 flights without a result\n" in output
    killed = int(re.search(r"killed it when ([\d,]+)", output)[1].replace(",", ""))
    assert 0 < killed < 20_000


def test_runs_do_not_use_the_folder_of_another_one(tmp_path):
    code, errors = run_with_example(
        tmp_path,
        """
import run
with run.own_folder("kafka") as first, run.own_folder("scale-out") as second:
    (first / "a").touch(), (second / "a").touch()
    with run.own_folder("kafka"):
        pass
""",
    )
    assert (code, errors) == (
        1, f"another run of this example uses {tmp_path / 'kafka'}: wait for it\n"
    )  # fmt: skip
    assert (tmp_path / "kafka" / "a").exists()
    assert (tmp_path / "scale-out" / "a").exists()


@pytest.mark.parametrize(
    ("broker", "silence", "error"),
    [
        ("sys.exit(3)", HANG, "the broker has ended with exit code 3: see {folder}/broker.log\n"),
        ("time.sleep(600)", 0.1, "waited 0.1 s for an answer of the broker at 127.0.0.1:"),
    ],
)
def test_a_broker_that_is_not_there_is_named(tmp_path, broker, silence, error):
    program = tmp_path / "broker.py"
    program.write_text(
        "import os, sys, time\n"
        "if sys.argv[1] == 'run':\n"
        "    print(os.getpid(), flush=True)\n"
        f"    {broker}\n"
    )
    code, errors = run_with_example(
        tmp_path,
        f"""
import run
run.BROKER, run.SILENCE = Path({str(program)!r}), {silence}
with run.own_folder("kafka") as folder, run.broker(folder):
    pass
""",
    )
    assert code == 1
    assert error.format(folder=tmp_path / "kafka") in errors
    said = (tmp_path / "kafka" / "broker.log").read_text()
    assert not said or not alive(int(said))
