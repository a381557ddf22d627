"""What tests of those who look at programs share."""

import pytest

from helpers import write_script
from shown_program import PROGRAM, Program


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the programs of this test are found."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("VELO_SUPERVISOR", raising=False)
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run" / "velo"


@pytest.fixture
def program(folder, tmp_path):
    """A program that runs."""
    running = Program(write_script(tmp_path, PROGRAM, "counts.py"))
    yield running
    running.close()
