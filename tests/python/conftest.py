"""One suite for both modes, and a look at the end that nothing of it is left."""

import contextlib
import gc
import os

import psutil
import pytest

from helpers import open_fds, until_sync
from velo import _client, _sync

MODES = ("inline", "process")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the storms at their full length")


@pytest.fixture
def long(request):
    """Whether the storms run at their full length."""
    return request.config.getoption("--long")


def pytest_collection_modifyitems(items):
    # A storm at full length takes minutes.
    for item in items:
        if item.config.getoption("--long") and "long" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(params=MODES)
def mode(request):
    """Where the stream functions of the test run."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def nothing_left():
    """After everything: no child process, no descriptor and no shared memory more than before."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()  # its library keeps a pipe for all loops to come
    shared = set(os.listdir("/dev/shm"))
    fds = open_fds()
    yield
    vars(_sync._local).clear()  # the event loop that `run_sync` keeps for this thread
    gc.collect()
    _client._shutdown()
    gc.collect()
    me = psutil.Process()
    until_sync(lambda: not me.children(recursive=True), 5, lambda: me.children(recursive=True))
    until_sync(
        lambda: len(open_fds()) <= len(fds),
        5,
        lambda: {fd: what for fd, what in open_fds().items() if fd not in fds},
    )
    assert set(os.listdir("/dev/shm")) <= shared
