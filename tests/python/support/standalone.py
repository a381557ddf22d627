"""A standalone supervisor for tests, started as a user starts it."""

import asyncio
import contextlib
import ctypes
import itertools
import json
import select
import signal
import socket
import subprocess
import sys
import time

from helpers import HANG, alive, environment, family, until_sync
from velo import _core

_numbers = itertools.count()
_libc = ctypes.CDLL(None)


class Daemon:
    """`velo supervisor start`, in the foreground of a process of its own, and ready."""

    def __init__(self, path, *options, prefix=(), wait=True):
        self.path = path
        self._seen = set()
        # The service manager's protocol: it says READY=1.
        notify = path.with_suffix(f".{next(_numbers)}")
        self.news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.news.bind(str(notify))
        self.news.settimeout(HANG)
        self.log = path.with_suffix(".txt").open("ab")  # closed by `close`
        command = [*prefix, sys.executable, "-m", "velo", "supervisor", "start"]
        self.process = subprocess.Popen(
            [*command, "--socket", str(path), *map(str, options)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=environment(NOTIFY_SOCKET=str(notify)),
            start_new_session=True,
            preexec_fn=end_with_this_thread,  # also when the tests are killed
        )
        if wait:
            assert "READY=1" in self.hear(), self.said()

    def hear(self):
        """What it tells its service manager next."""
        deadline = time.monotonic() + HANG
        while True:
            if select.select([self.news], [], [], 0.05)[0]:
                return self.news.recv(4096).decode()
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"no word to NOTIFY_SOCKET: {self.said()}"

    def said(self):
        """Its log."""
        return self.path.with_suffix(".txt").read_text()

    @property
    def pid(self):
        return self.process.pid

    def status(self):
        """As `velo supervisor status --json` shows it."""
        state = json.loads(ask(self.path, lambda line: line.status(), _core.Report.Status).text)
        self._seen.update(family(self.pid))
        if state["pid"] == self.pid:  # otherwise it counts processes in its own way
            self._seen.update(worker["pid"] for worker in state["workers"] if worker["pid"])
        return state

    def restart(self):
        self.status()
        ask(self.path, lambda line: line.restart(), _core.Report.Done)

    def kill(self):
        """Kill -9; its workers live on for their clients."""
        with contextlib.suppress(AssertionError):
            self.status()
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Ends it as `velo supervisor stop` does."""
        with contextlib.suppress(AssertionError):
            self.status()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANG)

    def seen_alive(self, bound=HANG):
        """Processes of its that are still there after a moment."""
        with contextlib.suppress(AssertionError):
            until_sync(lambda: not any(map(alive, self._seen)), bound)
        return [pid for pid in self._seen if alive(pid)]

    def close(self):
        """Let nothing outlive a test."""
        if self.process.poll() is None:
            with contextlib.suppress(AssertionError, OSError):
                self.status()
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(HANG)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.news.close()
        self.log.close()


def end_with_this_thread():
    """In a child that is about to run its program: it is told to end when the tests have ended."""
    _libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def ask(path, order, wanted, bound=HANG):
    """Gives the supervisor at a path an order, and returns its answer."""
    return answer(_core.SupervisorClient.connect(str(path)), order, wanted, bound)


def answer(line, order, wanted, bound=HANG):
    """Gives an order over a connection, and returns its answer."""
    order(line)
    deadline = time.monotonic() + bound
    while (left := deadline - time.monotonic()) > 0:
        if select.select([line.fileno()], [], [], left)[0]:
            for report in line.poll():
                match report:
                    case _core.Report.Lost():
                        raise AssertionError("the supervisor has hung up")
                    case _core.Report.Unable(why=why):
                        raise AssertionError(why)
                if isinstance(report, wanted):
                    return report
    raise AssertionError(f"no answer within {bound} s")


class Told:
    """What a command has said."""

    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"code {self.code}: {self.out} {self.err}"


async def velo(daemon, *words):
    """`velo ... --socket PATH`, while this program's loop goes on."""
    command = [sys.executable, "-m", "velo", *map(str, words), "--socket", str(daemon.path)]
    run = asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=environment(), timeout=HANG
    )
    return Told(await run)


async def velo_until(daemon, *words, fits):
    """What a command says, once it fits: it goes without a worker that has no turn for 500 ms."""
    deadline = time.monotonic() + HANG
    while not fits(told := await velo(daemon, *words)):
        assert time.monotonic() < deadline, told
    return told
