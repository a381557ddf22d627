"""The pytest plugin: the fixtures of `velo.testing`, which it imports when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from velo.testing import Recording, VirtualClock


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "recordings(*paths): run the test for each recording in these files and folders, which it "
        "gets as `recording`",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each recording that its mark names."""
    if "recording" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("recordings")
    if mark is None:
        return
    from velo.testing import recordings

    # Relative to the folder of pytest's configuration, like other paths of a test run.
    root = metafunc.config.rootpath
    paths = recordings(*(root / path for path in mark.args))
    names = [
        str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths
    ]
    metafunc.parametrize("recording", paths, ids=names, indirect=True)


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Recording:
    """Load in turn each recording that `@pytest.mark.recordings(...)` names."""
    from velo.testing import load_recording

    if not hasattr(request, "param"):
        raise pytest.UsageError("`recording` needs a mark: @pytest.mark.recordings(FOLDER)")
    # They belong to the tests, and so are as trusted as these.
    return load_recording(request.param, trust=True)


@pytest.fixture
def virtual_clock() -> Iterator[VirtualClock]:
    """Create an event loop whose time passes only while all of its tasks wait."""
    import asyncio

    from velo.testing import VirtualClock

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualClock)
        yield loop
