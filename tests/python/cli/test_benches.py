"""`benches/run.py`: what is measured from a checkout. How fast anything is is not judged here."""

import importlib.util
import subprocess
import sys

import pytest

from pages import ROOT
from velo.bench.measure import Subject

SCRIPT = ROOT / "benches" / "run.py"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("benches_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_two_builds_are_measured_in_turn():
    command = [sys.executable, SCRIPT, "against", sys.executable, "--quick"]
    done = subprocess.run(
        [*command, "--scenario", "codec"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    cells = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| codec")]
    assert {row[2] for row in cells} == {"encode", "decode"}
    assert {row[1] for row in cells} == {"velo"}
    assert all(float(row[3].replace(",", "")) > 0 for row in cells)


def test_ratios_are_this_build_by_the_other(run):
    pairs = [({"rate": 4.0}, {"rate": 2.0}), ({"rate": 9.0}, {"rate": 3.0, "more": 1.0})]
    (row,) = run.rows(pairs)
    assert row == ("rate", "6.5", "2.5", "2.500", "2.000 to 3.000")


def test_floors_and_peers_are_not_measured_again(run):
    ours = [Subject("velo.bench.ours:feed"), Subject("velo.bench.codec:codec", ("velo", "x", 1))]
    others = [
        Subject("velo.bench.floors:memcpy"),
        Subject("velo.bench.peers.use:singly"),
        Subject("velo.bench.codec:codec", ("pickle", "x", 1)),
    ]
    assert [run.is_velo(subject) for subject in ours + others] == [True, True, False, False, False]


def test_an_interpreter_without_velo_is_named(run, tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 'No module named velo' >&2\nexit 1\n")
    other.chmod(0o755)
    with pytest.raises(RuntimeError, match="No module named velo"):
        run.measure(Subject("velo.bench.ours:import_velo"), str(other))
    with pytest.raises(SystemExit):
        run.main(["against", str(tmp_path / "nothing")])


def test_what_a_shard_costs_is_printed_as_rows(run, monkeypatch, capsys):
    asked = []

    def measured(subject):
        asked.append(subject.where.rpartition(":")[2])
        return {"s": 2.0, "core s": 1.0, "ms": 4.0, "core ms": 3.0, "KiB": len(asked)}

    monkeypatch.setattr(Subject, "measure", measured)
    assert run.main(["shards", "--quick"]) == 0
    assert asked == ["moving", "uploads", "uploads", "uploads"]
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split(" | ")[1] for row in rows] == [
        "2 s, 1 s of a core, 1 KiB",
        "2, 3, 4 KiB",
        "3, 3, 3 ms",
    ]


def test_the_criterion_benchmarks_are_where_cargo_looks():
    manifest = (ROOT / "velo-shm" / "Cargo.toml").read_text()
    assert (ROOT / "benches" / "run.py").exists()
    for name in ("ring", "doorbell"):
        assert (ROOT / "benches" / f"{name}.rs").exists()
        assert f'path = "../benches/{name}.rs"' in manifest
    codec = (ROOT / "benches" / "codec" / "Cargo.toml").read_text()
    assert 'path = "../codec.rs"' in codec
    assert (ROOT / "benches" / "codec.rs").exists()
