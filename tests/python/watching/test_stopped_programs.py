"""Programs that stand still, as those see them who look: they hold up nobody, and lose nothing."""

import contextlib
import os
import signal
import socket
import subprocess
import threading

import psutil
import pytest

from helpers import HANG, until_sync, write_script
from shown_program import PROGRAM, Program
from velo import _core
from velo._process import supervisors
from velo.cli.errors import Failure
from velo.cli.supervisor.admin_connection import AdminConnection, NoAnswer
from velo.cli.supervisor.overview import Overview

# Seconds that these tests let a supervisor take for an answer.
SHORT = 0.2


class Silent:
    """Listens as a program would that is stopped: nothing accepts, and there is room for one."""

    def __init__(self, folder):
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.pid = self.process.pid
        with open(f"/proc/{self.pid}/stat") as stat:
            started = stat.read().rpartition(")")[2].split()[19]
        namespace = os.stat("/proc/self/ns/pid").st_ino
        self.path = folder / f"program-{self.pid}-{started}-{namespace}.sock"
        # A socket's address has no room for the path of a test's folder.
        self.folder = os.open(folder, os.O_PATH)
        self.address = f"/proc/self/fd/{self.folder}/{self.path.name}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.path.chmod(0o600)
        self.listener.listen(0)

    def fill(self):
        """Have nobody else connect."""
        queued = []
        with contextlib.suppress(BlockingIOError):
            while True:
                queued.append(socket.socket(socket.AF_UNIX))
                queued[-1].setblocking(False)
                queued[-1].connect(self.address)
        for one in queued:
            one.close()  # it stays in the queue

    def close(self):
        self.listener.close()
        os.close(self.folder)
        self.process.communicate()


@pytest.fixture
def silent(folder):
    folder.mkdir(mode=0o700)
    program = Silent(folder)
    yield program
    program.close()


def test_one_that_never_accepts_holds_up_one_look_alone(silent):
    overview = Overview(None, None, SHORT)
    for _ in range(20):  # each would have left a connection in its queue
        assert silent.pid not in [state["pid"] for state in overview.look()]
        assert f"did not answer within {SHORT} s" in overview.refused[silent.pid]
    assert silent.path.exists()
    assert overview.complete


def test_one_whose_queue_is_full_is_left_alone(silent):
    silent.fill()
    overview = Overview(None, None, SHORT)
    for _ in range(3):
        overview.look()
        assert "accepts no connection" in overview.refused[silent.pid]
    with pytest.raises(Failure, match="accepts no connection"):
        Overview(None, silent.pid, SHORT)
    assert silent.path.exists()
    silent.process.communicate()
    overview.look()
    assert silent.pid not in overview.refused


def test_a_signal_does_not_end_the_attempt(silent):
    silent.fill()
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with pytest.raises(NoAnswer, match="accepts no connection"):
            AdminConnection.to_program(silent.pid, str(silent.path))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert silent.path.exists()


def test_other_threads_go_on_meanwhile(silent):
    silent.fill()
    connecting, made = threading.Event(), []

    def connect():
        connecting.set()
        made.append(_core.SupervisorClient.connect(str(silent.path)))

    thread = threading.Thread(target=connect)
    thread.start()
    assert connecting.wait(HANG)
    silent.listener.accept()[0].close()  # it connects if this thread makes room
    thread.join(HANG)
    assert len(made) == 1


def test_a_program_is_told_that_its_supervisor_accepts_no_connection(silent):
    silent.fill()
    with pytest.raises(supervisors.NoSupervisor, match="accepts no connection"):
        supervisors.connect(str(silent.path))


def test_the_file_of_one_that_cannot_be_reached_stays(silent, monkeypatch):
    def fail(path):
        raise ConnectionError("too many open files")

    monkeypatch.setattr(_core.SupervisorClient, "connect", fail, raising=True)
    with pytest.raises(Failure, match="too many open files"):
        AdminConnection.to_program(silent.pid, str(silent.path))
    assert silent.path.exists()


def test_one_that_goes_on_is_shown_again(program, tmp_path):
    other = Program(write_script(tmp_path, PROGRAM, "goes_on.py"))
    try:
        overview = Overview(None, None, SHORT)

        def seen():
            return {state["pid"] for state in overview.look()}

        until_sync(lambda: {program.pid, other.pid} <= seen())
        os.kill(program.pid, signal.SIGSTOP)
        until_sync(lambda: seen().isdisjoint({program.pid}) and program.pid in overview.refused)
        until_sync(lambda: other.pid in seen())
        assert program.pid in overview.refused
        os.kill(program.pid, signal.SIGCONT)
        until_sync(lambda: {program.pid, other.pid} <= seen())
        assert program.pid not in overview.refused
    finally:
        other.close()


def test_the_one_that_is_asked_for_is_shown_once_it_goes_on(program):
    overview = Overview(None, program.pid)
    ((connection, _),) = overview.ask(
        lambda line, _: line.supervisor.status(), lambda line, _: line.said()
    )
    os.kill(program.pid, signal.SIGSTOP)
    until_sync(lambda: psutil.Process(program.pid).status() == psutil.STATUS_STOPPED)
    connection.bound = SHORT
    for _ in range(2):
        with pytest.raises(Failure, match=f"did not answer within {SHORT} s"):
            overview.look()
    os.kill(program.pid, signal.SIGCONT)
    connection.bound = HANG

    def answers():
        with contextlib.suppress(Failure):
            return [state["pid"] for state in overview.look()] == [program.pid]

    until_sync(answers)
