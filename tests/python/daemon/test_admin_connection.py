"""The line of the commands that speak to a supervisor: what arrives together, and the end."""

import os

import pytest

from velo import _core
from velo.cli.errors import Failure
from velo.cli.supervisor.admin_connection import AdminConnection


class Supervisor:
    """Says what a test has written down, one list at a time."""

    def __init__(self, *said):
        self._said = list(said)
        self._read, write = os.pipe()
        os.close(write)  # always to be read

    def fileno(self):
        return self._read

    def poll(self):
        return self._said.pop(0) if self._said else []

    def close(self):
        os.close(self._read)


@pytest.fixture
def line_of():
    made = []

    def make(*said):
        line = AdminConnection.__new__(AdminConnection)
        line.supervisor = Supervisor(*said)
        line.path, line.label = "s.sock", "the supervisor"
        made.append(line.supervisor)
        return line

    yield make
    for supervisor in made:
        supervisor.close()


def test_an_end_that_comes_with_the_answer_is_known(line_of):
    line = line_of([_core.Report.Done(), _core.Report.Lost()])
    assert line.answer() is None
    assert line.end(0.1)


def test_an_end_instead_of_an_answer_is_known(line_of):
    line = line_of([_core.Report.Lost()])
    with pytest.raises(Failure, match="has hung up"):
        line.answer()
    assert line.end(0.1)


def test_an_end_that_does_not_come_is_not_made_up(line_of):
    line = line_of([_core.Report.Done()])
    line.answer()
    assert not line.end(0.05)
