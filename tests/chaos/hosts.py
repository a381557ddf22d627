"""Hosts with a cable to a broker: network namespaces of this machine, or processes behind proxies.

A host runs programs. `unplug` cuts it off without a word to either side: what is sent is lost, or
waits; `plug` mends that.
"""

import contextlib
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time

from standalone import end_with_this_thread

__all__ = ["Namespace", "Proxied", "Service", "namespaces"]

_numbers = itertools.count()
# Addresses that are set aside for tests of networks: 198.18.0.0/15.
_BLOCK = "198.18"
_HANGS = 30  # seconds until a network that is not there is an error
# Seconds until a program that has failed is started again, and that one may take to stop.
_PAUSE, _STOPS = 0.2, 60


class Host:
    """Where programs run.

    Attributes:
        listens: The address and port at which the broker has to listen for it.
        sees: The address and port that its programs connect to.

    """

    listens: str
    sees: str

    def __init__(self):
        self._programs = []

    def start(self, command, **options):
        """Run a program."""
        program = subprocess.Popen(
            [*self._enter(), *map(str, command)],
            preexec_fn=end_with_this_thread,  # also when the tests are killed
            **options,
        )
        self._programs.append(program)
        return program

    def _enter(self):
        return ()

    def lose(self):
        """End for good, as a machine that burns down: nobody hears of it."""
        self.unplug()
        for program in self._programs:
            if program.poll() is None:
                program.kill()  # workers end with it
            program.wait()

    def close(self):
        """End all programs."""
        for program in self._programs:
            program.kill()
            program.wait()


class Namespace(Host):
    """A host with a network of its own, and a cable to this machine.

    Args:
        port: The broker's port at this end of the cable.

    """

    def __init__(self, port):
        super().__init__()
        number = (os.getpid() * 8 + next(_numbers)) % (256 * 64)
        net, at = f"{_BLOCK}.{number // 64}", number % 64 * 4
        self._cable = f"velo{number}"
        # Network and cable end with this process, which ends when the tests close its input.
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + _HANGS
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == own:
            if self._holder.poll() is not None:
                raise PermissionError("`unshare --net` is not permitted")
            if time.monotonic() > deadline:
                raise TimeoutError(f"`unshare --net` has made no network within {_HANGS} s")
            time.sleep(0.005)
        holder = str(self._holder.pid)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", holder)
        _ip("address", "add", f"{net}.{at + 1}/30", "dev", self._cable)
        _ip("link", "set", self._cable, "up")
        for words in (
            ("address", "add", f"{net}.{at + 2}/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            subprocess.run([*self._enter(), "ip", *words], check=True)
        self.listens = self.sees = f"{net}.{at + 1}:{port}"

    def _enter(self):
        return ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net")

    def unplug(self):
        """Pull the cable."""
        _ip("link", "set", self._cable, "down")

    def plug(self):
        """Put it in again."""
        _ip("link", "set", self._cable, "up")

    def close(self):
        """End all programs, and the network."""
        super().close()
        # At once: the namespace outlives its last process a little.
        subprocess.run(["ip", "link", "delete", self._cable], capture_output=True)
        self._holder.stdin.close()
        self._holder.wait()


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces():
    """Whether this user may make network namespaces and cables between them."""
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    try:
        Namespace(1).close()
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True


class Proxied(Host):
    """A host that reaches the broker through a proxy, which passes nothing on while it is cut off.

    Args:
        port: The broker's port on the loopback.

    """

    def __init__(self, port):
        super().__init__()
        self.listens = f"127.0.0.1:{port}"
        self._server = socket.create_server(("127.0.0.1", 0))
        self.sees = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._to = ("127.0.0.1", port)
        self._wakes, self._wake = os.pipe()
        self._is_plugged, self._is_closed = True, False
        self._peers = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def unplug(self):
        """Pass nothing on, and take no connections."""
        self._is_plugged = False
        os.write(self._wake, b".")

    def plug(self):
        """Pass on what has waited, and what comes."""
        self._is_plugged = True
        os.write(self._wake, b".")

    def close(self):
        """End all programs, and the proxy."""
        super().close()
        self._is_closed = True
        os.write(self._wake, b".")
        self._thread.join()
        for end in (*self._peers, self._server):
            end.close()
        os.close(self._wake)
        os.close(self._wakes)

    def _run(self):
        while not self._is_closed:
            ends = [*self._peers, self._server] if self._is_plugged else []
            ready, _, _ = select.select([*ends, self._wakes], [], [])
            for end in ready:
                if end == self._wakes:
                    os.read(self._wakes, 64)
                elif end is self._server:
                    self._connect()
                elif end in self._peers:
                    self._pass_on(end)

    def _connect(self):
        near, _ = self._server.accept()
        try:
            far = socket.create_connection(self._to)
        except OSError:
            near.close()
        else:
            self._peers |= {near: far, far: near}

    def _pass_on(self, end):
        peer = self._peers[end]
        with contextlib.suppress(OSError):
            if data := end.recv(1 << 16):
                peer.sendall(data)
                return
        for each in (end, peer):
            del self._peers[each]
            each.close()


class Service:
    """A program that is started again when it fails, as systemd and Kubernetes do it.

    Args:
        host: Where it runs.
        command: The program.
        log: What it prints.
        folder: Where it runs.
        once: Whether it is left alone when it fails.

    Attributes:
        starts: How often it was started.

    """

    def __init__(self, host, command, log, folder, *, once=False):
        self.host = host
        self.starts = 0
        self._command = command
        self._log = log
        self._folder = folder
        self._lock = threading.Lock()
        self._over = threading.Event()
        if once:
            self._over.set()
        self._start()
        self._thread = threading.Thread(target=self._tend, daemon=True)
        self._thread.start()

    def _start(self):
        self.starts += 1
        with open(self._log, "ab") as log:
            self._program = self.host.start(self._command, stdout=log, stderr=log, cwd=self._folder)

    def _tend(self):
        while self._program.wait():
            if self._over.wait(_PAUSE):
                return
            with self._lock:
                if self._over.is_set():
                    return
                self._start()

    @property
    def log(self):
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def has_ended(self):
        """Whether it has ended, and is not started again."""
        return self._over.is_set() and self._program.poll() is not None

    def stop(self):
        """Stop it, as its manager does; gives its exit code."""
        self._leave_alone()
        self._program.send_signal(signal.SIGTERM)
        try:
            return self._program.wait(_STOPS)
        except subprocess.TimeoutExpired:
            self._program.kill()
            return self._program.wait()

    def lose(self):
        """Have it end with its host."""
        self._leave_alone()
        self.host.lose()

    def _leave_alone(self):
        with self._lock:
            self._over.set()
