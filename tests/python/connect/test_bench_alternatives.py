"""`velo bench --scenario alternatives`: one run of a whole program gives each figure."""

import json
import sys

import pytest
from click.testing import CliRunner

from velo.bench import alternatives, connect_broker, redis_server
from velo.bench.alternatives import ALTERNATIVES, INLINE, PROCESS
from velo.bench.measure import Plan, Subject
from velo.bench.peers import environments
from velo.bench.processes import marked
from velo.bench.scenarios import alternatives as scenario
from velo.cli.bench import bench as command

pytest.importorskip("confluent_kafka")

COUNT = 3_000
FIGURES = {"start", "rate", "cpu", "memory"}


@pytest.fixture(scope="module")
def filled(kafka):
    from velo.bench.connect_kafka import source

    with source(kafka.address, COUNT) as topic:
        yield kafka.address, topic, COUNT, 0.2


@pytest.mark.parametrize("name", [INLINE, PROCESS])
def test_velo_has_all_figures(filled, name):
    arguments = (name, sys.executable, *filled)
    figures = Subject("velo.bench.alternatives:measured", arguments).measure()
    assert figures.keys() == FIGURES
    assert figures["start"] > 0
    assert figures["rate"] > 0
    assert figures["memory"] > 1
    assert figures["cpu"] >= 0


@pytest.mark.parametrize("name", [name for name, each in ALTERNATIVES.items() if not each.heavy])
def test_an_alternative_has_all_figures(filled, name):
    if not (python := environments.made(ALTERNATIVES[name].requirements)):
        pytest.skip(f"{name} has no environment: run `velo bench --scenario alternatives` once")
    figures = Subject("velo.bench.alternatives:measured", (name, python, *filled)).measure()
    assert figures.keys() == FIGURES


def test_the_scenario_has_a_row_for_each_figure_and_mode(kafka, monkeypatch):
    monkeypatch.setenv(connect_broker.SETTING, kafka.address)
    arguments = ["--quick", "--scenario", "alternatives", "--compare", "none", "--format", "json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["scenarios"]["alternatives"]
    assert len(rows) == 2 * len(scenario.FIGURES)
    assert {row["unit"] for row in rows} == {unit for _, unit in scenario.FIGURES.values()}


def test_a_row_compares_velo_with_each_alternative():
    round = dict.fromkeys(FIGURES, 2.0)
    rows = list(scenario._rows({INLINE: [round], PROCESS: [round], "Faust": [round]}))
    compared = [row for row in rows if row.compared_with == "Faust 0.15.3"]
    assert len(compared) == len(scenario.FIGURES)
    (code,) = (row for row in compared if row.unit == "lines")
    assert code.value == alternatives.lines(INLINE)
    assert code.other == alternatives.lines("Faust")


def test_the_rate_leaves_out_what_was_stored_first():
    assert alternatives._rate([1.0, 1.0, 1.5, 2.0, 3.0]) == pytest.approx(1.5)
    assert alternatives._rate([1.0, 1.0]) == 2 / alternatives.TICK


def test_lines_are_counted_without_comments_docstrings_and_empty_lines():
    function = 'def f(x):\n    """It."""\n    return """a\nb"""\n'
    program = '"""What\nit is."""\n\nx = 1  # one\n# two\ny = f(\n    x,\n)\n\n\n' + function
    assert alternatives._lines_of(program) == 7


def test_a_program_that_ends_is_reported_and_nothing_of_it_stays(filled, monkeypatch, tmp_path):
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('it is broken')")
    monkeypatch.setitem(ALTERNATIVES, "Faust", alternatives.Alternative(str(program), ("x",)))
    marks = []
    monkeypatch.setattr(alternatives, "_stop_all", marks.append)
    with pytest.raises(RuntimeError, match="code 1: it is broken"):
        alternatives.measured("Faust", sys.executable, *filled)
    (mark,) = marks
    assert marked(mark) == []


def test_what_is_large_is_installed_only_where_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(environments, "_call", lambda _: pytest.fail("it installs something"))
    monkeypatch.setattr(scenario, "ALTERNATIVES", {"PyFlink": ALTERNATIVES["PyFlink"]})
    warnings = []
    plan = Plan(True, None, len, warnings.append)
    assert scenario._subjects(plan, "", "", 1).keys() == {INLINE, PROCESS}
    assert "--compare PyFlink" in warnings.pop()


def test_without_redis_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(redis_server.shutil, "which", lambda _: None)
    monkeypatch.delenv(redis_server.SETTING, raising=False)
    with pytest.raises(redis_server.NoRedis, match="install"), redis_server.server():
        pass
