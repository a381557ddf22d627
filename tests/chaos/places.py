"""Where streams run while things die: below this process, or below a supervisor of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil

__all__ = ["Daemon", "Embedded", "gone", "line_of", "segments", "still_there"]


def line_of(program, seconds, awaited):
    """The next line of a program; one that prints none in time is killed, and `awaited` named."""
    late = threading.Event()

    def end():
        late.set()
        program.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        line = program.stdout.readline()
    finally:
        timer.cancel()
        timer.join()
    if late.is_set() and not line:
        raise TimeoutError(f"process {program.pid} has not told {awaited} within {seconds} s")
    return line


def _is_zygote(process):
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        # By its title; until it has that, by what it was started with.
        return command.startswith("velo: zygote") or "velo._worker.zygote" in command
    return False


def _children(pid):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children()
    return []


def still_there(pids):
    """Those of these processes that live."""

    def lives(pid):
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    return [pid for pid in pids if lives(pid)]


def gone(pids, within):
    """Wait until these processes are gone; those that are not in time."""
    deadline = time.monotonic() + within
    while (left := still_there(pids)) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def segments():
    """Shared memory that has a name which velo could have given it: others use /dev/shm too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("shmem_", "velo"))}


class Embedded:
    """The supervisor is a thread of a client."""

    name = "embedded"
    settings: dict = {}

    def __init__(self, client):
        self._client = client

    def processes(self):
        """The pids below the client, by what they are."""
        found = {"zygote": [], "worker": []}
        for child in _children(self._client):
            if _is_zygote(child):
                found["zygote"].append(child.pid)
                found["worker"] += [worker.pid for worker in _children(child.pid)]
        return found

    def mend(self):
        """Nothing has to be started again."""

    def close(self):
        """It ends with its client."""


class Daemon:
    """The supervisor is a process of its own, which somebody starts again when it dies."""

    name = "daemon"

    def __init__(self, folder):
        self.path = str(folder / "supervisor.sock")
        self.settings = {"supervisor": self.path}
        self._log = (folder / "supervisor.log").open("ab")
        self._processes = []
        self.mend()

    def mend(self):
        """Start it, if it does not run."""
        if self._processes and self._processes[-1].poll() is None:
            return
        command = [sys.executable, "-m", "velo", "supervisor", "start", "--socket", self.path]
        self._processes.append(
            subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)
        )
        self._wait()

    def _wait(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as there:
                there.connect(self.path)
                return
            time.sleep(0.002)
        raise AssertionError("the supervisor did not come up within 20 s")

    def processes(self):
        """The pids of the daemon and below it, by what they are."""
        daemon = self._processes[-1].pid
        return {"daemon": [daemon], **Embedded(daemon).processes()}

    def close(self):
        """End it; what it leaves is to be looked for."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(20)
        self._log.close()
