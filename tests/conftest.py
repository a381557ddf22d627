"""What all test folders share: the short form of the long tests, and the long one."""

import pytest


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
