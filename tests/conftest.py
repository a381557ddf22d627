"""What all test folders share: the length of the long tests, and the look for leaks."""

import contextlib

import pytest

from leaks import Belongings


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


@pytest.fixture(scope="session", autouse=True)
def _pipe_of_uvloop():
    """Its library keeps a pipe for all loops to come: have it from the beginning."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing(request, _pipe_of_uvloop):
    """A leak is found in the module that made it."""
    before, failed = Belongings(), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:  # the traceback of a test that failed keeps things
        before.check(request.module.__name__)
