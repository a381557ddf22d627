"""What all test folders share: the length of the long tests, and the look for leaks."""

import collections
import contextlib
import os
import signal
from pathlib import Path

import pytest

from leaks import Belongings

HERE = Path(__file__).parent
# Folders about whole programs: each of their tests starts some.
PROGRAMS = {"chaos", "cli", "daemon", "examples", "frameworks", "typing"}

# With it the programs that tests start would print each line at once, which users' programs do not.
os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the storms at their full length")
    parser.addoption("--fast", action="store_true", help="leave out what takes long")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out by --fast")
    config.addinivalue_line("markers", "sampled(n): one in n of its cases runs without --long")
    # A shell has its jobs in the background ignore Ctrl-C, and so would the programs of the tests.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def long(request):
    """Whether the storms run at their full length."""
    return request.config.getoption("--long")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        for item in items:
            if "long" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.timeout(3600))  # a storm at full length takes minutes
    else:
        leave_out(config, items, set(beyond_the_sample(items)))
    if config.getoption("--fast"):
        leave_out(config, items, {item for item in items if is_slow(item)})


def leave_out(config, items, left_out):
    """Do not run these."""
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def beyond_the_sample(items):
    """The cases of tests that are marked `sampled` that do not run without --long.

    A step through the cases that has no factor in common with the numbers of values meets every
    value of every parameter.
    """
    seen = collections.Counter()
    for item in items:
        if (marker := item.get_closest_marker("sampled")) is not None:
            test = item.path, item.originalname
            if seen[test] % marker.args[0]:
                yield item
            seen[test] += 1


def is_slow(item):
    """Whether a test is a storm, is about a program around velo, or is marked."""
    around = PROGRAMS & set(item.path.relative_to(HERE).parts)
    return bool(around or item.get_closest_marker("slow") or "long" in item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def _pipe_of_uvloop():
    """Its library keeps a pipe for all loops to come: have it from the beginning."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(scope="session", autouse=True)
def _working_copies(tmp_path_factory):
    """Have checkpoints in object stores leave no working copies with the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VELO_CHECKPOINT_CACHE", str(tmp_path_factory.mktemp("working-copies")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing(request, _pipe_of_uvloop):
    """A leak is found in the module that made it."""
    before, failed = Belongings(), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:  # the traceback of a test that failed keeps things
        before.check(request.module.__name__)
