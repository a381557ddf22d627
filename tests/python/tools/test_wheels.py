"""What `make wheels` and `make test-pythons` do with the Pythons of the machine."""

import importlib.util
import subprocess
import sys

import pytest

from helpers import ROOT, environment


@pytest.fixture
def tool():
    path = ROOT / "tools" / "pythons.py"
    spec = importlib.util.spec_from_file_location("pythons", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_this_python_is_among_them_and_old_ones_are_not(tool):
    found = tool.pythons()
    assert found[OURS] == sys.executable
    assert all(tuple(map(int, version.split("."))) >= (3, 11) for version in found)


def test_the_tests_run_with_each_other_python(tool, monkeypatch, capfd):
    monkeypatch.setattr(tool, "pythons", lambda: {"3.99": "there", OURS: sys.executable})
    built = []

    def environment(version, interpreter):
        built.append((version, interpreter))
        return sys.executable

    monkeypatch.setattr(tool, "environment", environment)
    assert tool.run_tests(["--version"]) == 0
    assert built == [("3.99", "there")]
    assert "3.99, there" in capfd.readouterr().out
    assert tool.run_tests(["--no-such-option"]) != 0


def test_they_run_with_one_that_is_named(tool, monkeypatch):
    others = {"3.98": "here", "3.99": "there"}
    monkeypatch.setattr(tool, "pythons", lambda: {**others, OURS: sys.executable})
    built = []
    monkeypatch.setattr(
        tool, "environment", lambda version, _: built.append(version) or sys.executable
    )
    assert tool.run_tests(["--version"], ["3.99"]) == 0
    assert built == ["3.99"]
    with pytest.raises(SystemExit, match=r"no other CPython 3\.97"):
        tool.run_tests([], ["3.97"])


def test_a_machine_without_another_python_says_so(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "pythons", lambda: {OURS: sys.executable})
    assert tool.run_tests([]) == 0
    assert "no other CPython that velo supports: nothing is tested" in capsys.readouterr().out


def test_what_a_wheel_is_tried_with_runs_in_every_mode(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "quickstart.py"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=True,
    )
    assert "inline mode works" in run.stdout
    assert "process mode works" in run.stdout
