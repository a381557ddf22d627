"""`make wheels` finds the Pythons of the machine."""

import importlib.util
import subprocess
import sys

from helpers import ROOT, environment


def wheels():
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "tools" / "wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_python_is_among_them_and_old_ones_are_not():
    found = wheels().pythons()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found[version] == sys.executable
    assert all(tuple(map(int, version.split("."))) >= (3, 11) for version in found)


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
