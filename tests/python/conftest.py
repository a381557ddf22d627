"""One suite for both modes and both supervisors.

Tests with the fixture `mode` or `way` run inline and in process mode. Modules that are marked
`every_backend` run in the workers of a standalone supervisor too; with `--daemon`, everything in
process mode does, except what is marked `embedded`. With `--inline`, only the tests of both modes
run, and inline: for a build without process mode. With `--ray`, only the tests run that need a Ray
cluster, which the others leave out: one cluster at a time is enough for a machine.
"""

import re

import hypothesis
import pytest

from helpers import open_fds
from leaks import LASTING
from ray_cluster import INSTALLED, RayCluster
from standalone import Daemon
from ways import OWN, RAY, WAYS
from workers import clients

PROCESS_MODE = re.compile(
    r"^(from velo\.(_process|_worker|cli\.(supervisor|dashboard))|import corrupting_worker)",
    re.MULTILINE,
)


def pytest_addoption(parser):
    parser.addoption(
        "--daemon", action="store_true", help="run process mode with a standalone supervisor"
    )
    parser.addoption("--inline", action="store_true", help="run tests of both modes inline alone")
    parser.addoption("--ray", action="store_true", help="run what needs a Ray cluster, alone")


def pytest_configure(config):
    # No example fails because the machine is busy.
    hypothesis.settings.register_profile(
        "velo", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("velo")
    config.addinivalue_line("markers", "every_backend: runs with a standalone supervisor too")
    config.addinivalue_line("markers", "on_ray: runs on the nodes of a Ray cluster too")
    config.addinivalue_line("markers", "embedded: is about the supervisor of the process itself")
    config.addinivalue_line("markers", "workers: needs process mode, in whatever mode it runs")


def pytest_ignore_collect(collection_path, config):
    """With `--inline`: what cannot be imported without process mode."""
    if config.getoption("--inline") and collection_path.suffix == ".py":
        return bool(PROCESS_MODE.search(collection_path.read_text())) or None
    return None


def pytest_generate_tests(metafunc):
    every = metafunc.definition.get_closest_marker("every_backend") is not None
    daemon = metafunc.config.getoption("--daemon")
    if "way" in metafunc.fixturenames:
        ways = WAYS if every else OWN
        if "mode" in metafunc.fixturenames:
            ways = [way for way in ways if way.through_mode]
        if metafunc.definition.get_closest_marker("on_ray") is not None:
            ways = [*ways, RAY]
        if metafunc.config.getoption("--inline"):
            ways = [way for way in ways if way.mode == "inline"]
        if daemon:
            ways = [way for way in ways if way.mode == "process" and not way.standalone]
        metafunc.parametrize("way", ways, indirect=True, ids=lambda way: way.name)
    elif every and not daemon:
        metafunc.parametrize("backend", ("embedded", "daemon"), indirect=True)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--inline"):
        other = [item for item in items if not runs_inline(item)]
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if runs_inline(item)]
    if config.getoption("--ray"):
        config.hook.pytest_deselected(items=[item for item in items if not needs_ray(item)])
        items[:] = [item for item in items if needs_ray(item)]
    elif not config.getoption("--long"):
        for item in filter(needs_ray, items):
            item.add_marker(pytest.mark.skip(reason="needs a Ray cluster: `make test-ray`"))
    for item in items:
        if item.config.getoption("--daemon") and item.get_closest_marker("embedded"):
            item.add_marker(pytest.mark.skip(reason="about the supervisor of the process itself"))


def runs_inline(item):
    """Whether a test of both modes runs inline, and needs no worker for that."""
    both = "way" in getattr(item, "fixturenames", ())
    return both and not item.get_closest_marker("workers")


def needs_ray(item):
    """Whether a test runs on the nodes of a Ray cluster."""
    callspec = getattr(item, "callspec", None)
    on_ray = callspec is not None and callspec.params.get("way") is RAY
    return on_ray or "ray_cluster" in getattr(item, "fixturenames", ())


@pytest.fixture
def way(request, monkeypatch):
    """How the streams of the test run, and are used; see `support/ways.py`."""
    if request.param.mode == "ray":
        request.getfixturevalue("ray_cluster")
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
def ray_cluster():
    """A Ray cluster that all tests share."""
    if not INSTALLED:
        pytest.skip("ray is not installed: pip install 'velo-stream[ray]'")
    before = open_fds()
    cluster = RayCluster()
    LASTING["fds"].update(open_fds().keys() - before.keys())
    yield cluster
    cluster.close()


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
