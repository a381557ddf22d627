"""One suite for both modes and both supervisors.

Tests with the fixture `mode` or `way` run inline and in process mode. Modules that are marked
`every_backend` run in the workers of a standalone supervisor too; with `--daemon`, everything in
process mode does, except what is marked `embedded`.
"""

import pytest

from helpers import open_fds
from leaks import LASTING
from standalone import Daemon
from velo._process import clients
from ways import OWN, WAYS


def pytest_addoption(parser):
    parser.addoption(
        "--daemon", action="store_true", help="run process mode with a standalone supervisor"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "every_backend: runs with a standalone supervisor too")
    config.addinivalue_line("markers", "embedded: is about the supervisor of the process itself")


def pytest_generate_tests(metafunc):
    every = metafunc.definition.get_closest_marker("every_backend") is not None
    daemon = metafunc.config.getoption("--daemon")
    if "way" in metafunc.fixturenames:
        ways = WAYS if every else OWN
        if "mode" in metafunc.fixturenames:
            ways = [way for way in ways if way.through_mode]
        if daemon:
            ways = [way for way in ways if way.mode == "process" and not way.standalone]
        metafunc.parametrize("way", ways, indirect=True, ids=lambda way: way.name)
    elif every and not daemon:
        metafunc.parametrize("backend", ("embedded", "daemon"), indirect=True)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.config.getoption("--daemon") and item.get_closest_marker("embedded"):
            item.add_marker(pytest.mark.skip(reason="about the supervisor of the process itself"))


@pytest.fixture
def way(request, monkeypatch):
    """How the streams of the test run, and are used; see `support/ways.py`."""
    if request.param.standalone:
        monkeypatch.setenv("VELO_SUPERVISOR", request.getfixturevalue("standalone"))
    return request.param


@pytest.fixture
def mode(way):
    """The setting that brings the stream functions of the test there."""
    return way.mode


@pytest.fixture(autouse=True)
def backend(request, monkeypatch):
    """Whose workers they run in, in process mode."""
    always = "daemon" if request.config.getoption("--daemon") else "embedded"
    backend = getattr(request, "param", always)
    if backend == "daemon":
        monkeypatch.setenv("VELO_SUPERVISOR", request.getfixturevalue("standalone"))
    return backend


@pytest.fixture(scope="session")
def standalone(tmp_path_factory):
    """Where a standalone supervisor listens that all tests share."""
    before = open_fds()
    daemon = Daemon(tmp_path_factory.mktemp("standalone") / "s.sock")
    LASTING["pids"].add(daemon.pid)
    LASTING["fds"].update(open_fds().keys() - before.keys())
    yield str(daemon.path)
    clients.shutdown()  # what is left of the tests' streams
    daemon.close()
    assert not daemon.seen_alive()
