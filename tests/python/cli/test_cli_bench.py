"""`velo bench`: its figures are of the subjects that it names, and it names those left out."""

import json
import sys

import pytest
from click.testing import CliRunner

from velo.bench import machine, report
from velo.bench.measure import Plan, Row, Subject, bounded, compare
from velo.cli.bench import NAMES
from velo.cli.bench import bench as command


def bench(*arguments):
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def plan(**changes):
    warnings = []
    arguments = {"quick": True, "peers": frozenset(), "say": len, "warn": warnings.append}
    return Plan(**{**arguments, **changes}), warnings


def test_one_scenario_with_one_peer_as_json_and_as_a_chart(velo):
    # In a process of its own, because matplotlib keeps its fonts open.
    measured = velo(
        "bench", "--quick", "--scenario", "latency", "--compare", "multiprocessing.Pipe",
        "--format", "json", "--plot", "charts",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    figures = json.loads(measured.out)
    assert figures["machine"]["Python"] == machine.describe()["Python"]
    assert list(figures["scenarios"]) == ["latency"]
    assert all(cores > 0 for cores in figures["cores"]["latency"])
    rows = figures["scenarios"]["latency"]
    (pipe,) = (row for row in rows if row["compared_with"] == "multiprocessing.Pipe")
    assert pipe["value"] > 0
    assert pipe["other"] > 0
    assert pipe["ratio"] == pytest.approx(pipe["value"] / pipe["other"])
    (picture,) = velo.folder.glob("charts/*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("style", ["table", "markdown"])
def test_the_output_names_the_machine_and_every_row(style):
    result = bench("--quick", "--scenario", "memory", "--compare", "none", "--format", style)
    assert result.exit_code == 0, result.output
    assert f"velo {machine.describe()['velo']}" in result.stdout
    assert "KiB" in result.stdout
    assert "ores that the machine gave: " in result.stdout


def test_an_unknown_peer_is_refused_with_the_names_of_those_there_are():
    result = bench("--compare", "nobody")
    assert result.exit_code == 2
    assert "multiprocessing.Pipe" in result.stderr


def test_every_scenario_can_be_chosen():
    from velo.bench.scenarios import SCENARIOS

    assert list(SCENARIOS) == NAMES


def test_a_subject_that_fails_is_named_and_left_out():
    measuring, warnings = plan(quick=False)
    figures = measuring.in_turn(
        {
            "breaks": Subject("velo.bench.floors:memcpy", (-1, 1)),
            "works": Subject("velo.bench.floors:memcpy", (10, 10)),
        }
    )
    assert list(figures) == ["works"]
    assert len(figures["works"]) == measuring.rounds
    (warning,) = warnings
    assert warning.startswith("breaks: ValueError")
    assert compare(figures, "works", "breaks", measurement="", unit="") == []
    assert bounded(figures, "breaks", measurement="", unit="", figure="rate") == []


def test_a_subject_may_have_an_interpreter_of_its_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps({'it': json.loads(sys.argv[1])[0]}))")
    subject = Subject(str(script), (7,), python=sys.executable)
    assert subject.measure() == {"it": 7}


def test_ratios_are_made_round_by_round():
    figures = {"one": [{"rate": 2.0}, {"rate": 30.0}, {"rate": 4.0}], "other": [{"rate": 1.0}] * 3}
    figures["other"][1] = {"rate": 10.0}
    (row,) = compare(figures, "one", "other", measurement="w", unit="events/s", target=3.5)
    assert (row.value, row.other, row.ratio) == (4.0, 1.0, 3.0)
    assert row.met is False


@pytest.mark.parametrize(
    ("unit", "value", "target", "met"),
    [
        ("events/s", 2.0, 1.0, True),
        ("events/s", 0.5, 1.0, False),
        ("ms", 0.5, 1.0, True),
        ("ms", 2.0, 1.0, False),
        ("ms", 2.0, None, None),
    ],
)
def test_more_is_better_only_per_second(unit, value, target, met):
    row = Row("row", value, unit, target=target)
    assert row.met is met
    assert ("NO" in report.cells(row)[-1]) is (met is False)


@pytest.mark.parametrize("use", ["feed", "send and recv", "nothing"])
def test_the_delay_of_a_timer_is_measured_beside_a_stream(use):
    figures = Subject("velo.bench.spinning:lateness", (use, "64 bytes", 0.1)).measure()
    assert figures["p99"] >= figures["p50"]
    assert (figures["rate"] > 0) is (use != "nothing")


def test_fewer_cores_are_fewer_cores():
    arguments = (1, "round_trips", "process", "64 bytes", 200)
    figures = Subject("velo.bench.spinning:pinned", arguments, {"VELO_SPIN": "0"}).measure()
    assert 0 < figures["p50"] <= figures["p99"]


@pytest.mark.parametrize("library", ["velo", "pickle", "ormsgpack", "msgpack"])
def test_a_codec_is_measured_with_values_that_it_carries(library):
    from velo.bench.codec import LIBRARIES, VALUES
    from velo.bench.scenarios.codec import ONLY_PICKLE, OPTIONAL

    if library in OPTIONAL:
        pytest.importorskip(library)
    dumps, loads = LIBRARIES[library]()
    values = {name: make() for name, make in VALUES.items() if name != "a 900 KB array"}
    for name, value in values.items():
        if library in OPTIONAL and name in ONLY_PICKLE:
            with pytest.raises(TypeError):
                dumps(value)
        else:
            assert loads(dumps(value)) == value
    figures = Subject("velo.bench.codec:codec", (library, "64 bytes", 0.02)).measure()
    assert figures["encode"] > 0
    assert figures["decode"] > 0
