"""Groups that grow and shrink while members are killed and frozen; more of each with `--long`."""

import os

import pytest

from ends import Servers
from groups import GroupOutcome, storm

# So many members are killed in each storm, and so many storms there are with `--long`.
KILLS, LONG_KILLS, STORMS = 1, 8, 10


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.stop()


def test_partitions_move_with_their_state_and_no_result_is_lost_or_doubled(servers, long):
    outcome, kills = GroupOutcome(), LONG_KILLS if long else KILLS
    for number in range(STORMS if long else 1):
        mode = "process" if number % 2 else "inline"
        storm(mode, servers["kafka"], kills, outcome, os.getpid() + number)
    assert outcome.clean, outcome
