"""`velo bench`: its figures are of the subjects that it names, and it names those left out."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from helpers import HANG
from velo.bench import baseline, machine, report
from velo.bench.measure import Plan, Row, Subject, bounded, compare
from velo.bench.peers import PEERS, environments, predecessor
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
    pictures = sorted(velo.folder.glob("charts/*"))
    assert [path.name for path in pictures] == ["latency-us-dark.svg", "latency-us-light.svg"]
    # Of the rows, those after a pause are compared with the most others: two floors.
    assert all("eventfd ping-pong, blocking" in path.read_text() for path in pictures)


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
    assert row.noise == 2.0, "from 2.0 to 4.0"


def test_one_round_has_no_noise():
    figures = {"one": [{"rate": 2.0}], "other": [{"rate": 1.0}]}
    (row,) = compare(figures, "one", "other", measurement="w", unit="events/s")
    assert row.noise is None


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


@pytest.mark.parametrize(
    ("ratio", "written"), [(0.8829, "0.883"), (9.24, "9.24"), (99.97, "100"), (1749.6, "1,750")]
)
def test_a_ratio_is_written_without_an_exponent(ratio, written):
    row = Row("row", 2.0, "events/s", compared_with="other", other=1.0, ratio=ratio)
    assert report.cells(row)[report.HEAD.index("ratio")] == written


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


KEYED = {
    "floors_keyed:throughput_of_generators": ("four-field dicts", 20, 200, "Zipf"),
    "floors_keyed:opening_generators": (200,),
    "floors_keyed:memory_of_generators": (5_000,),
    "ours_keyed:throughput": ("process", 2, "four-field dicts", 20, 200, "Zipf"),
    "ours_keyed:slow_keys": ("inline", None, 200, 1_000, True),
    "ours_keyed:burn_in_turn": (1, 20, 100, 2),
    "ours_keyed:opening": ("process", 1, 200),
    "ours_keyed:memory": ("process", 1, 5_000),
    "ours_keyed:requests": ("process", 1, 20, 10, 5),
    "ours_keyed:recovery": (20,),
    "peers.use:batched_by_key": ("multiprocessing.Pipe", "tuples", 20, 2_000, "even"),
}


@pytest.mark.parametrize("where", KEYED)
def test_a_subject_of_many_keys_has_figures(where):
    figures = Subject(f"velo.bench.{where}", KEYED[where]).measure()
    assert all(figure > 0 for figure in figures.values())


def test_events_of_keys_are_even_or_zipf_distributed_and_the_same_each_time():
    from collections import Counter

    from velo.bench.keyed_events import events_of_keys

    even = Counter(key for key, _ in events_of_keys("tuples", 100, 1_000))
    assert set(even.values()) == {10}
    zipf = events_of_keys("four-field dicts", 100, 1_000, "Zipf")
    assert zipf == events_of_keys("four-field dicts", 100, 1_000, "Zipf")
    (first, _), *_, (_, last) = Counter(event["user"] for event in zipf).most_common()
    assert first == 0
    assert last < 10


def test_every_row_of_many_keys_has_its_subjects(monkeypatch):
    """The scenario names subjects that there are, with arguments that they take."""
    import importlib
    import inspect

    from velo.bench.scenarios import keyed

    asked = []

    def in_turn(self, subjects):
        asked.extend(subjects.values())
        figures = {"rate": 2.0, "floor": 1.0, "us": 1.0, "KiB": 1.0, "ms": 2.0, "undisturbed": 1.0}
        return {name: [figures] for name in subjects}

    monkeypatch.setattr(Plan, "in_turn", in_turn)
    monkeypatch.setattr(keyed, "choose", lambda wanted: (PEERS, {}))
    measuring, _ = plan(quick=False)
    rows = list(keyed.measure(measuring))
    assert len({row.measurement for row in rows}) > 20
    numbers = {row.at for row in rows if row.series == keyed.INLINE}
    assert numbers == {10, 100, 1_000, 10_000, 100_000, 1_000_000}
    for subject in asked:
        module, _, function = subject.where.partition(":")
        if "bytewax" not in module:  # which need not be installed
            found = getattr(importlib.import_module(module), function)
            inspect.signature(found).bind(*subject.arguments)


def test_figures_are_drawn_as_bars_and_those_over_the_number_of_keys_as_lines(tmp_path):
    script = """
import sys
from pathlib import Path
from velo.bench.measure import Row
from velo.bench.plot import draw
rows = [
    Row("m", 10.0 * at, "events/s", "a floor", 5.0, 2.0 * at, None, "velo, inline", at)
    for at in (10.0, 100.0)
]
rows += [Row("`most`", 30.0, "events/s", name, 20.0, 1.5) for name in ("one", "two", "three")]
print(*[path.name for path in draw({"keyed": rows}, Path(sys.argv[1]))])
"""
    pytest.importorskip("matplotlib")
    # In a process of its own, because matplotlib keeps its fonts open.
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=HANG
    )
    assert done.stdout.split() == [
        "keyed-light.svg", "keyed-dark.svg", "keyed-events-light.svg", "keyed-events-dark.svg",
    ]  # fmt: skip
    for theme in ("light", "dark"):
        lines = (tmp_path / f"keyed-{theme}.svg").read_text()
        assert "a floor" in lines
        assert "velo, inline" in lines
        bars = (tmp_path / f"keyed-events-{theme}.svg").read_text()
        assert all(f">{said}</text>" in bars for said in ("velo: most", "one", "three", "30.00"))
        assert "a floor" not in bars  # compared with fewer others


@pytest.fixture
def measured(monkeypatch):
    """Scenarios that measure nothing: they give the rows that the test puts here."""
    from velo.bench import scenarios

    rows = {name: [] for name in NAMES}
    monkeypatch.setattr(
        scenarios,
        "SCENARIOS",
        {name: lambda plan, name=name: iter(rows[name]) for name in NAMES},
    )
    monkeypatch.setattr(Plan, "cores", lambda self: 2.0)
    return rows


def row(measurement, ratio, noise, unit="events/s"):
    return Row(measurement, 2.0, unit, "a peer", 1.0, ratio, noise=noise)


def test_several_scenarios_are_measured_and_written_to_a_file(measured, tmp_path):
    measured["latency"] = [row("one", 2.0, 0.5)]
    measured["memory"] = [Row("two", 3.0, "KiB")]
    measured["codec"] = [row("three", 2.0, 0.5)]
    file = tmp_path / "figures.json"
    chosen = ("--scenario", "memory", "--scenario", "latency")
    result = bench(*chosen, "--compare", "none", "--output", str(file))
    assert result.exit_code == 0, result.output
    assert "a peer" in result.stdout
    written = json.loads(file.read_text())
    assert written["machine"] == machine.describe()
    assert list(written["scenarios"]) == ["latency", "memory"]
    (one,) = written["scenarios"]["latency"]
    assert (one["ratio"], one["noise"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("unit", "now", "noise", "fell"),
    [
        ("events/s", 1.75, 0.125, False),  # by as much as the noise of the earlier run
        ("events/s", 1.5, 0.125, True),
        ("events/s", 1.5, 0.5, False),  # the larger noise counts
        ("events/s", 9.0, 0.125, False),
        ("µs", 2.25, 0.125, False),
        ("µs", 2.5, 0.125, True),  # in a time less is better
        ("µs", 0.125, 0.125, False),
    ],
)
def test_a_ratio_that_fell_by_more_than_its_noise_is_the_exit_code(
    measured, tmp_path, unit, now, noise, fell
):
    file = str(tmp_path / "figures.json")
    measured["latency"] = [row("falls", 2.0, 0.25, unit), row("stays", 5.0, 0.25)]
    assert bench("--scenario", "latency", "--compare", "none", "--output", file).exit_code == 0
    measured["latency"] = [row("falls", now, noise, unit), row("stays", 5.0, 0.25)]
    result = bench("--scenario", "latency", "--compare", "none", "--baseline", file)
    assert result.exit_code == int(fell), result.output
    assert ("fell: latency, falls, compared with a peer: 2 before, " in result.stderr) is fell
    assert f"{int(fell)} of 2 ratios fell by more than their noise" in result.stderr
    assert "stays, compared" not in result.stderr


def test_a_file_may_be_baseline_and_output_in_one(measured, tmp_path):
    file = tmp_path / "figures.json"
    measured["latency"] = [row("falls", 2.0, 0.1)]
    both = ("--scenario", "latency", "--compare", "none", "--output", str(file))
    assert bench(*both).exit_code == 0
    measured["latency"] = [row("falls", 1.0, 0.1)]
    assert bench(*both, "--baseline", str(file)).exit_code == 1
    assert bench(*both, "--baseline", str(file)).exit_code == 0, "it has the new figures"


def test_ratios_that_only_the_baseline_has_are_named(measured, tmp_path):
    file = str(tmp_path / "figures.json")
    measured["latency"] = [row("gone", 2.0, 0.1), row("stays", 2.0, 0.1)]
    measured["memory"] = [row("not asked for", 2.0, 0.1)]
    assert bench("--compare", "none", "--output", file).exit_code == 0
    measured["latency"] = [row("stays", 2.0, 0.1), row("new", 2.0, 0.1)]
    result = bench("--scenario", "latency", "--compare", "none", "--baseline", file)
    assert result.exit_code == 0
    assert "only in the baseline: latency, gone, a peer" in result.stderr
    assert "not asked for" not in result.stderr
    assert "0 of 1 ratios fell" in result.stderr


def test_a_baseline_that_compares_nothing_is_no_success(measured, tmp_path):
    file = str(tmp_path / "figures.json")
    measured["latency"] = [row("one round", 2.0, None)]
    assert bench("--scenario", "latency", "--compare", "none", "--output", file).exit_code == 0
    result = bench("--scenario", "latency", "--compare", "none", "--baseline", file)
    assert result.exit_code == 1
    assert "two rounds or more" in result.stderr


@pytest.mark.parametrize("content", ["", "[1]", '{"scenarios": {"latency": [{}]}}'])
def test_a_baseline_that_is_something_else_is_refused_before_measuring(
    monkeypatch, tmp_path, content
):
    monkeypatch.setattr(Plan, "cores", lambda self: pytest.fail("it measures"))
    file = tmp_path / "figures.json"
    file.write_text(content)
    result = bench("--baseline", str(file), "--compare", "none")
    assert result.exit_code == 1
    assert f"`--baseline {file}`: it is no output of `velo bench`" in result.stderr


def test_an_output_that_cannot_be_written_is_refused_before_measuring(monkeypatch, tmp_path):
    monkeypatch.setattr(Plan, "cores", lambda self: pytest.fail("it measures"))
    result = bench("--output", str(tmp_path / "no folder" / "figures.json"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


def test_a_baseline_without_a_ratio_is_refused(tmp_path):
    file = tmp_path / "figures.json"
    results = {"memory": [Row("two", 3.0, "KiB")]}
    file.write_text(report.as_json(results, {}, machine.describe()))
    with pytest.raises(baseline.BadBaseline, match="it has no ratio"):
        baseline.read(file)


def test_velo_stream_is_measured_by_an_interpreter_of_its_own(monkeypatch, tmp_path):
    asked = []

    def python_of(requirements):
        asked.extend(requirements)
        return sys.executable

    monkeypatch.setattr(environments, "python_of", python_of)
    measuring, warnings = plan(peers=None)
    subjects = predecessor.subjects(measuring, ", one by one", "throughput", "64 bytes", 0.1)
    ((name, subject),) = subjects.items()
    assert name == f"velo-stream {machine.describe()['velo']}, one by one"
    assert asked == ["velo-stream<1"]
    assert (subject.python, subject.arguments) == (sys.executable, ("throughput", "64 bytes", 0.1))
    # What is here has the same names.
    assert subject.measure()["rate"] > 0
    assert Subject(subject.where, ("round_trips", 0.1), python=subject.python).measure()["p50"] > 0
    assert predecessor.subjects(plan()[0], "", "throughput") == {}

    def refused(requirements):
        raise environments.Refused("no wheel")

    monkeypatch.setattr(environments, "python_of", refused)
    assert predecessor.subjects(measuring, "", "throughput") == {}
    assert warnings == ["velo-stream: no wheel"]
