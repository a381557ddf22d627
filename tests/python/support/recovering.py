"""What the tests of recovery share."""

import asyncio
import contextlib
import os
import signal

import pytest

from helpers import until
from velo import stream_fn
from workers import clients


@pytest.fixture(autouse=True)
def fresh_pool():
    """Each test has a supervisor of its own: deaths in a row slow down the next start."""
    clients.shutdown()
    yield
    clients.shutdown()


@pytest.fixture(autouse=True)
def gate(tmp_path, monkeypatch):
    """A file that functions and tests see, and that is not there at first."""
    path = tmp_path / "gate"
    monkeypatch.setenv("VELO_TEST_GATE", str(path))
    return path


@stream_fn(mode="process", recover="replay", workers=2)
async def sums(events):
    """Running sums, in a local variable."""
    total = 0
    async for event in events:
        total += event
        yield total


def links():
    """The links of the running loop to its workers."""
    return list(clients.client_of(asyncio.get_running_loop()).links.values())


async def kill_workers():
    """Kills every worker that there is, and waits until the client knows."""
    dead = links()
    for link in dead:
        with contextlib.suppress(ProcessLookupError):
            os.kill(link.pid, signal.SIGKILL)
    await until(lambda: not any(link in links() for link in dead))
