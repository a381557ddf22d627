"""What tests of the standalone supervisor share: daemons of their own."""

import pytest

from standalone import Daemon


@pytest.fixture
def daemon_at(tmp_path, monkeypatch):
    """Starts a daemon that the programs of this test use: `daemon_at("--workers", 2)`."""
    daemons = []
    path = tmp_path / "s.sock"
    monkeypatch.setenv("VELO_SUPERVISOR", str(path))

    def start(*options, **more):
        daemons.append(Daemon(path, *options, **more))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()
    left = [worker for daemon in daemons for worker in daemon.seen_alive()]
    assert not left, f"left behind: {left}"


@pytest.fixture
def daemon(daemon_at):
    """A daemon that the programs of this test use."""
    return daemon_at("--workers", 2)
