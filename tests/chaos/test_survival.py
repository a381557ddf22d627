"""A sample of the kills of programs with a checkpoint; 500 of each pair with `--long`."""

import json
import os

import pytest

import guarantees
import object_stores  # noqa: F401 (it has obstore begin what lasts as long as the process)
from ends import Servers
from survival import PAIRS, survive

# How often each pair is hit; others with servers take longer.
OFTEN = {"file-file", "websocket-file"}
KILLS, KILLS_WITH_SERVERS, LONG = 20, 6, 500
# The sample has these of what is promised less than exactly once or by the journal, and of object
# stores, whose steps have tests of their own.
FEW = {("inline", "step"), ("process", "instant"), ("process", "worker")}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.stop()


def pytest_generate_tests(metafunc):
    if "how" in metafunc.fixturenames:
        found = list(cells(metafunc.config.getoption("--long")))
        metafunc.parametrize(("pair", "mode", "how"), found)


def cells(long):
    for name, pair in PAIRS.items():
        whole = long or pair.exact and not pair.journal and not pair.remote
        for mode, how in guarantees.cells(pair, LONG):
            if whole or (mode, how) in FEW:
                yield pytest.param(pair, mode, how, id=f"{name}-{mode}-{how}")


def test_a_program_that_is_killed_goes_on_exactly(pair, mode, how, servers, long):
    few = KILLS if pair.name in OFTEN else KILLS_WITH_SERVERS
    kills = guarantees.cells(pair, LONG if long else few)[mode, how]
    outcome = survive(pair, mode, how, kills, servers, seed=os.getpid())
    assert outcome.clean, outcome
    assert outcome.runs == kills


def test_the_page_has_the_figures_of_the_kills():
    figures = json.loads(guarantees.JSON.read_text())
    assert list(figures) == list(PAIRS)
    text = guarantees.PAGE.read_text()
    assert guarantees.paged(text, figures) == text
    for name, found in figures.items():
        assert {tuple(cell.split(", ")) for cell in found} == set(guarantees.cells(PAIRS[name], 1))
        for figure in found.values():
            assert not any(figure[key] for key in ("lost", "doubled", "wrong", "left", "failed"))
