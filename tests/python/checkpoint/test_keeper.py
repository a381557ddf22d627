"""The keeper of a supervisor, without a supervisor."""

import gc
import os
import socket
import warnings

from helpers import HANG
from velo._checkpoint.keeper import Keeper
from velo._checkpoint.session_folder import SessionFolder


class Notes:
    def tell_checkpoint(self, text):
        pass

    def log(self, failure, text):
        pass


def test_the_line_of_a_worker_that_is_dead_already_is_closed_once(tmp_path, monkeypatch):
    """A second close would take the descriptor of another file that was opened meanwhile."""

    def pidfd_open(pid):
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    keeper = Keeper(SessionFolder(tmp_path / "states", None), {"every": 1.0, "path": ""}, Notes())
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
