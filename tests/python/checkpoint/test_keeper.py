"""The keeper of a supervisor, without a supervisor."""

import asyncio
import contextlib
import gc
import os
import resource
import socket
import warnings

import pytest

from helpers import HANG, blocked
from velo._checkpoint.keeper import Keeper
from velo._checkpoint.session_folder import SessionFolder
from velo._function import frames
from velo._worker.keeper_line import KeeperLine
from velo._worker.keeping import Keeping
from velo.errors import CheckpointError


class Notes:
    def tell_checkpoint(self, text):
        pass

    def log(self, failure, text):
        pass


class Kept:
    """The state of a session, and what it is told of that when it begins."""

    def __init__(self, key):
        self.key = key
        self.name = ("function", key)

    def refuse(self):
        pass

    def on_loaded(self, found, settings):
        self.found = found


class Session:
    def __init__(self, key):
        self.kept = Kept(key)


def keeper_in(folder):
    settings = {"every": 1.0, "path": ""}
    return Keeper(SessionFolder(folder / "states", None), settings, Notes())


@contextlib.contextmanager
def no_descriptor_left():
    free = os.dup(0)
    os.close(free)
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


async def test_a_worker_that_could_not_connect_tries_again_with_its_next_session(tmp_path):
    lost = asyncio.Event()
    first, *others = (Session(b"%d" % number) for number in range(3))
    async with asyncio.timeout(HANG):
        with contextlib.closing(keeper_in(tmp_path)) as keeper:
            keeping = Keeping(keeper.zygotes_end.fileno(), lost.set)
            with no_descriptor_left():
                await keeping.load(first)
            assert isinstance(first.kept.found, CheckpointError)
            assert "Too many open files" in str(first.kept.found)
            await asyncio.gather(*map(keeping.load, [first, *others]))
            assert [one.kept.found for one in (first, *others)] == [None] * 3
        await lost.wait()


async def test_a_worker_goes_on_while_there_is_no_room_for_its_line():
    """It connects once the keeper has taken what others have passed."""
    keeper, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with keeper, workers:
        keeper.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                workers.send(b"\0", socket.MSG_DONTWAIT)
        lost = asyncio.Event()
        connecting = asyncio.ensure_future(KeeperLine.connect(workers.fileno(), lost.set))
        assert await blocked(connecting)
        passed = []
        async with asyncio.timeout(HANG):
            while not passed:
                with contextlib.suppress(BlockingIOError):
                    _, passed, _, _ = socket.recv_fds(keeper, 1, 1)
                await asyncio.sleep(0)
            with socket.socket(fileno=passed[0]) as line:
                line.send(frames.pack((0, {"every": 1.0})))
                assert (await connecting).settings == {"every": 1.0}
            await lost.wait()


async def test_a_worker_whose_keeper_is_gone_is_told_so():
    keeper, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.close()
    with workers, pytest.raises(CheckpointError, match="has ended"):
        await KeeperLine.connect(workers.fileno(), lambda: None)


def test_the_line_of_a_worker_that_is_dead_already_is_closed_once(tmp_path, monkeypatch):
    """A second close would take the descriptor of another file that was opened meanwhile."""

    def pidfd_open(pid):
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    keeper = keeper_in(tmp_path)
    here, there = socket.socketpair()
    here.settimeout(HANG)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with here, there:
            socket.send_fds(keeper.zygotes_end, [b"\0"], [there.fileno()])
            there.close()
            assert here.recv(1) == b""
        keeper.close()
        gc.collect()
    assert [str(one.message) for one in said] == []
