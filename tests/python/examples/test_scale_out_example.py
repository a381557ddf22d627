"""The example with three members: one is killed, and the results are as of an undisturbed run."""

import re

import pytest

from example_runs import needs_kafka, run_example, run_with_example


@pytest.fixture(autouse=True)
def kafka_is_there():
    needs_kafka()
    pytest.importorskip("obstore", reason="needs velo-stream[objects]")


def test_aircraft_have_the_results_of_an_undisturbed_run_after_a_kill():
    output = run_example("scale-out/members.py", "--flights", 10000, "--session", 2)
    same, aircraft = re.search(r"\n([\d,]+) of ([\d,]+) aircraft have the results", output).groups()
    assert same == aircraft
    killed = int(re.search(r"killed one of 3 members when ([\d,]+)", output)[1].replace(",", ""))
    assert killed < 9_000


def test_a_member_that_ends_is_named(tmp_path):
    code, errors = run_with_example(
        tmp_path,
        f"""
import members
results = members.Results("127.0.0.1:1")
member = members.Member(Path({str(tmp_path)!r}), "127.0.0.1:1", 1, "no mode", 6.0)
members.wait_for(results, 1, [member], lambda: None)
""",
    )
    assert code == 1
    assert f"member 1 has ended with exit code 2: see {tmp_path}/member-1.log\n" in errors
