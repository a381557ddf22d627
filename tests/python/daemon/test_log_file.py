"""What `--detach` writes to, and what it removes: nothing that velo has not made."""

import fcntl
import os
import socket
import stat
import subprocess
import sys

import pytest

from helpers import environment
from velo.cli.supervisor import log_file

OWN = "my own log, a year old\n"


@pytest.fixture
def shell(tmp_path):
    """Runs `velo supervisor`, and ends what it has left."""

    def run(*args, **env):
        return subprocess.run(
            [sys.executable, "-m", "velo", "supervisor", *map(str, args)],
            cwd=tmp_path,
            env={**environment(), **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield run
    for path in tmp_path.rglob("*.sock"):
        run("stop", "--socket", path, "--timeout", 0)


def started(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("log in ")[2].strip()


def test_a_file_of_the_users_stays_as_it_is(shell, tmp_path):
    for name, make in {
        "open": lambda path: path.write_text(OWN),
        "private": lambda path: (path.write_text(OWN), path.chmod(0o600)),
        "link": lambda path: path.symlink_to(tmp_path / "precious"),
        "hanging": lambda path: path.symlink_to(tmp_path / "not-there"),
        "fifo": os.mkfifo,
        "folder": lambda path: path.mkdir(),
    }.items():
        (tmp_path / "precious").write_text(OWN)
        log = tmp_path / f"{name}.log"
        make(log)
        before = log.lstat()
        where = started(shell("start", "--socket", f"./{name}.sock", "--detach", "--workers", 1))
        assert where == str(tmp_path / f"{name}-2.log")
        assert stat.S_IMODE(os.stat(where).st_mode) == 0o600
        assert shell("stop", "--socket", f"./{name}.sock").returncode == 0
        assert not os.path.lexists(where)
        after = log.lstat()
        assert (before.st_ino, before.st_mode, before.st_mtime_ns) == (
            after.st_ino,
            after.st_mode,
            after.st_mtime_ns,
        )
        assert (tmp_path / "precious").read_text() == OWN
        assert not (tmp_path / "not-there").exists()


def test_the_log_of_one_that_crashed_is_used_again(tmp_path):
    usual = tmp_path / "pool.log"
    path, fd = log_file.open_log(usual, "text")
    os.write(fd, b"something\n")
    other, busy = log_file.open_log(usual, "text")  # one that runs has its own
    assert (path, other) == (usual, tmp_path / "pool-2.log")
    os.close(fd)
    again, fd = log_file.open_log(usual, "json")
    assert again == usual
    assert usual.read_text() == "velo supervisor log\nsomething\n"
    usual.rename(tmp_path / "pool.old")
    usual.write_text(OWN)
    log_file.remove(usual, fd)
    assert usual.read_text() == OWN
    for each in (fd, busy):
        os.close(each)


def test_only_its_user_can_hold_up_a_start(shell, tmp_path):
    """The lock was on the folder, which everybody could open and lock."""
    tmp_path.chmod(0o755)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        started(shell("start", "--socket", "./pool.sock", "--detach", "--workers", 1))
    finally:
        os.close(folder)
    assert sorted(os.listdir(tmp_path)) == ["pool.log", "pool.sock"]


def test_a_lock_that_others_can_open_is_not_used(shell, tmp_path):
    lock = tmp_path / "pool.sock.lock"
    lock.touch()
    lock.chmod(0o666)
    done = shell("start", "--socket", "./pool.sock", "--workers", 1)
    assert done.returncode == 1
    assert "is not a file of this user alone" in done.stderr
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    assert shell("start", "--socket", "./pool.sock", "--workers", 1).returncode == 1
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_what_another_user_has_put_there(shell, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(shared / "dead.sock"))
    os.chown(shared / "dead.sock", 12345, 12345)
    done = shell("start", "--socket", "shared/dead.sock", "--workers", 1)
    assert done.returncode == 1
    assert "another user" in done.stderr
    log = shared / "pool.log"
    log.write_bytes(b"velo supervisor log\n")
    log.chmod(0o600)
    os.chown(log, 12345, 12345)
    where = started(shell("start", "--socket", "shared/pool.sock", "--detach", "--workers", 1))
    assert where == str(shared / "pool-2.log")
    assert log.read_bytes() == b"velo supervisor log\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("how", ["file", "link", "second name"])
def test_an_output_in_a_folder_of_all(tmp_path, how):
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    shared.mkdir()
    shared.chmod(0o1777)
    mine.write_text(OWN)
    out = shared / "out.ndjson"
    if how == "file":
        out.write_text(OWN)
        os.chown(out, 12345, 12345)
    elif how == "link":
        out.symlink_to(mine)
    else:
        os.link(mine, out)
    (tmp_path / "f.py").write_text(
        "from velo import stream_fn\n@stream_fn\nasync def echo(events):\n"
        "    async for event in events:\n        yield event\n"
    )
    (tmp_path / "in.ndjson").write_text("1\n")
    for more in ((), ("--resume",)):
        done = subprocess.run(
            [sys.executable, "-m", "velo", "run", "f.py:echo", "-i", "in.ndjson", "-o", out, *more],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "folder that everybody may write to" in done.stderr
        assert mine.read_text() == OWN
