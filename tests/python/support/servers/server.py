"""A server process that a test session starts and stops."""

import contextlib
import fcntl
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from leaks import LASTING
from standalone import end_with_this_thread

__all__ = ["Server", "free_port", "program"]


def _ports():
    """The ports that the system gives to nobody by itself, as it does to each client.

    Without those below 20000, which Ray gives to its workers.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [port for port in range(20_000, 65_536) if not first <= port <= last]
    return ports or list(range(20_000, 65_536))


@functools.cache
def _claims():
    """A file with a byte per port, which a process of tests locks until its end.

    What asked for a port may not listen on it for long, and other processes run tests meanwhile.
    """
    path = Path(tempfile.gettempdir()) / f"velo-test-ports-{os.getuid()}"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    LASTING["fds"].add(file)
    return file


# A generator of its own: tests may seed that of the module.
_random = random.Random()
# The ports that were given out here: a process does not lock itself out.
_given = set()


def free_port():
    """A loopback port that nothing listens on, another one each time."""
    ports = _ports()
    while True:
        port = _random.choice(ports)
        if port not in _given and _claim(port) and _is_free(port):
            _given.add(port)
            return port


def _claim(port):
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:  # another process has it
        return False
    return True


def _is_free(port):
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def program(name, *folders, hint):
    """The path of a server's program; skips the test where it is not installed.

    With VELO_TEST_SERVERS=required in the environment that is an error: no check is left out there.
    """
    path = os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which(name, path=path):
        return found
    absent(f"`{name}` is not installed: {hint}")


def absent(why):
    """Skip the test, or fail it where all servers are required."""
    if os.environ.get("VELO_TEST_SERVERS") == "required":
        pytest.fail(why)
    pytest.skip(why)


class Server:
    """A process in the folder `folder`, whose output goes to `log`.

    A subclass has `name`, `command()` and `probe()`, which raises until the server is ready.
    """

    name = "server"
    seconds_to_start = 60

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.log = self.folder / "log"
        self.process = None

    def command(self):
        raise NotImplementedError

    def probe(self):
        socket.create_connection(("127.0.0.1", self.port), 1).close()

    def start(self):
        # Ends with the tests, also when they are killed: with the thread that starts it, in fact,
        # which is the thread of one test where a test restarts the server off its event loop.
        main = threading.current_thread() is threading.main_thread()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, env=self.environment(),
                preexec_fn=end_with_this_thread if main else None,
                **self.started_as(),
            )  # fmt: skip
        LASTING["pids"].add(self.process.pid)
        deadline = time.monotonic() + self.seconds_to_start
        while True:
            try:
                self.probe()
                return self
            except Exception as error:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} has ended: {self.tail()}") from error
                if time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"{self.name} is not ready: {self.tail()}") from error
                time.sleep(0.05)

    def environment(self):
        return dict(os.environ)

    def started_as(self):
        """The user, as arguments of `Popen`: the one who runs the tests."""
        return {}

    def tail(self):
        return self.log.read_text(errors="replace")[-2000:]

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self):
        if self.process is not None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def sync(self):
        """Have what was declared a moment ago survive `kill`."""

    def kill(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def disconnect(self):
        """Close the clients that the server keeps for tests, with their descriptors."""

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)
