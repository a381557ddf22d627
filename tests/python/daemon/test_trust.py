"""Who may talk to a supervisor, and what it makes of what they say."""

import asyncio
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import time

import pytest

import functions
from helpers import HANG, environment
from velo import _core
from velo.errors import PoolError

MAGIC = 0x5645


def frame(payload, fds=0, length=None):
    return struct.pack("<HHI", MAGIC, fds, len(payload) if length is None else length) + payload


def hello(version):
    return frame(b"\x81\xa5Hello\x81\xa7version" + bytes([version]))


def raw(daemon):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(HANG)
    line.connect(str(daemon.path))
    return line


def answer(line, silence=1.0):
    """What comes until the other side hangs up, or falls silent for so many seconds after it."""
    said = b""
    while select.select([line], [], [], silence if said else HANG)[0]:
        try:
            more = line.recv(65536)
        except ConnectionResetError:
            return said, True
        if not more:
            return said, True
        said += more
    return said, False


def last_words(line):
    """What comes before the other side hangs up."""
    said, ended = answer(line, HANG)
    assert ended, said
    return said


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        frame(b"", length=1 << 31),
        frame(b"\x81\xa5Hello\x81\xa7version\x03", fds=60_000),
        frame(b"\xc1" * 10),
        hello(3) + frame(b"\x81\xa5Knock\x80"),
        frame(b"\x81\xa7Acquire\x82\xa7request\x01\xabmax_workers\x01"),
    ],
    ids=["http", "zeros", "huge", "descriptors", "garbage", "unknown", "no-hello"],
)
def test_what_makes_no_sense_is_hung_up_on(daemon, sent):
    with raw(daemon) as line:
        line.sendall(sent)
        last_words(line)
    assert daemon.status()["workers"] == [], "and the supervisor goes on"


def test_another_version_is_told_ours(daemon):
    with raw(daemon) as line:
        line.sendall(hello(99))
        said = last_words(line)
    assert b"version" in said
    assert "another version" in daemon.said()


def test_fields_of_later_versions_in_a_hello_do_not_matter(daemon):
    with raw(daemon) as line:
        version = _version()
        line.sendall(frame(b"\x81\xa5Hello\x82\xa7version" + bytes([version]) + b"\xa4more\x01"))
        said, ended = answer(line)
        assert not ended
        assert b"cpython" in said


def _version():
    """The version that a client of this velo says."""
    here, there = socket.socketpair()
    del here, there
    path = f"/tmp/velo-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        os.chmod(path, 0o600)
        try:
            listening.listen()
            client = _core.SupervisorClient.connect(path)
            line, _ = listening.accept()
            with line:
                said = line.recv(100)
            del client
        finally:
            os.unlink(path)
    return said[said.index(b"version") + len(b"version")]


def test_the_silent_are_turned_away(daemon_at):
    daemon = daemon_at("--hello-timeout", 0.3)
    with raw(daemon) as silent, raw(daemon) as slow:
        slow.sendall(hello(3)[:5])
        for line in (silent, slow):
            assert line.recv(100) == b"", "hung up"
    assert "did not say hello in time" in daemon.said()


def test_the_slow_are_hung_up_on(daemon_at):
    """A message that was begun has to end; how long there is none does not matter."""
    daemon = daemon_at("--hello-timeout", 2)
    greeting = hello(_version())  # made before the time of the lines runs
    with raw(daemon) as quiet, raw(daemon) as slow:
        for line in (quiet, slow):
            line.sendall(greeting)
        assert not answer(quiet)[1]
        assert not answer(slow)[1]
        message = frame(b"\x81\xa5Admin\xa6Status")
        slow.sendall(message[:5])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in message[5:-1]:  # every byte is news, but it is not all of it
                time.sleep(0.5)
                slow.sendall(bytes([byte]))
        last_words(slow)
        assert "left a message unfinished for `2` s" in daemon.said()
        quiet.sendall(message)
        said, ended = answer(quiet)
        assert said
        assert not ended


async def test_more_clients_than_it_takes_are_told(daemon_at):
    daemon = daemon_at("--max-clients", 2)
    with raw(daemon) as one, raw(daemon) as other:
        for line in (one, other):
            line.sendall(hello(_version()))
            assert not answer(line)[1]
        with pytest.raises(PoolError, match="--max-clients"):
            await functions.echo.options(mode="process").open()
    # They have gone: there is room again, once the supervisor has noticed.
    async with asyncio.timeout(HANG):
        while True:
            with contextlib.suppress(PoolError):
                assert await functions.echo.options(mode="process").run([1]) == [1]
                break


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

CONNECT = """
import os, socket, sys
os.setgid(1)
os.setuid(1)
line = socket.socket(socket.AF_UNIX)
line.settimeout(10)
line.connect(sys.argv[1])
sys.stdout.buffer.write(line.recv(1000))
"""

SERVE = """
import os, socket, sys
os.umask(0)
line = socket.socket(socket.AF_UNIX)
os.setgid(1)
os.setuid(1)
line.bind(sys.argv[1])
line.listen()
print("ready", flush=True)
peer, _ = line.accept()
data = peer.recv(1000)
sys.stdin.read()
"""


@root
def test_another_user_is_turned_away(tmp_path, daemon):
    """Even where the folder and the socket would let it in."""
    os.chmod(daemon.path, 0o666)
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(folder, os.stat(folder).st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, str(daemon.path)],
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert b"serves the user with id `0` only, not `1`" in done.stdout, done
    assert daemon.status()["clients"]


@root
async def test_a_supervisor_of_another_user_is_not_used(tmp_path):
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(folder, os.stat(folder).st_mode | 0o011)
    os.chmod(tmp_path, 0o777)
    path = tmp_path / "theirs.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path)], stdin=-1, stdout=-1, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(PoolError, match="run by the user with id `1`"):
            await functions.echo.options(mode="process", supervisor=str(path)).open()
    finally:
        process.kill()
        process.communicate()


def start(*options, **more):
    return subprocess.run(
        [sys.executable, "-m", "velo", "supervisor", "start", *options],
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=HANG,
        check=False,
    )


def test_the_socket_is_for_its_user_alone(daemon):
    assert daemon.path.stat().st_mode & 0o777 == 0o600


def test_a_default_folder_that_others_can_use_is_refused(tmp_path):
    (tmp_path / "velo").mkdir()
    (tmp_path / "velo").chmod(0o755)
    done = start(XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "can be used by others" in done.stderr


def test_a_default_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "velo").symlink_to(tmp_path / "elsewhere")
    done = start(XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "is no folder" in done.stderr


def test_a_file_is_not_replaced(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    done = start("--socket", str(path))
    assert done.returncode == 1
    assert "is no socket" in done.stderr
    assert path.read_text() == "data"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    done = start("--socket", str(tmp_path / "nowhere" / "s.sock"))
    assert done.returncode == 1
    assert "cannot listen at" in done.stderr
