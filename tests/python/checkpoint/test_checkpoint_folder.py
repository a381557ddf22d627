"""The folder of a checkpoint: who may have it, and what is wrong with it, is said clearly."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

from checkpoints import opened
from helpers import environment
from small_disk import enlarge, mounted
from velo._checkpoint.checkpoint import Checkpoint
from velo._checkpoint.store import FORMAT
from velo._core import dumps
from velo.errors import CheckpointError

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fraud"


def states(count, length=200):
    return {f"key-{n}": dumps({"text": "x" * length}) for n in range(count)}


@pytest.fixture
async def written(path):
    """A checkpoint with a few hundred keys."""
    with opened(path) as checkpoint:
        await checkpoint.commit(1, states(500), {0: 10}, {})
    return path


# One process at a time.

HOLD = """
import os, sys
from velo._checkpoint.checkpoint import Checkpoint
checkpoint = Checkpoint.open(sys.argv[1], "fraud")
if len(sys.argv) > 2 and not os.fork():  # a child that outlives it
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path, *args):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_pid_of_the_first(path):
    with holder(path) as process, pytest.raises(CheckpointError) as raised:
        Checkpoint.open(path, "fraud")
    assert f"`{path}` is in use by process {process.pid}; one process at a time" in str(
        raised.value
    )


def test_a_dead_process_holds_nothing(path):
    with holder(path) as process:
        process.kill()
        process.wait()
        with opened(path) as checkpoint:
            assert checkpoint.epoch == 0


def test_a_child_of_a_dead_process_holds_nothing(path):
    with holder(path, "fork") as process:
        process.kill()
        process.wait()
        with opened(path) as checkpoint:
            assert checkpoint.epoch == 0


def test_the_same_process_is_refused_and_keeps_its_lock(path):
    with opened(path):
        with pytest.raises(CheckpointError, match="in use by this process already"):
            Checkpoint.open(path, "fraud")
        command = [sys.executable, "-c", HOLD, str(path)]
        other = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert f"in use by process {os.getpid()}" in other.stderr
    with opened(path):
        pass


def test_one_that_could_not_be_opened_holds_nothing(path):
    with opened(path):
        pass
    with pytest.raises(CheckpointError, match="belongs to the function"):
        Checkpoint.open(path, "another")
    with opened(path):
        pass


# What is there.


def test_it_is_its_users_alone(path):
    with opened(path):
        assert path.stat().st_mode & 0o077 == 0
        assert (path / "state.sqlite").stat().st_mode & 0o077 == 0


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(CheckpointError, match=r"file` is no folder"):
        Checkpoint.open(tmp_path / "file", "fraud")
    with pytest.raises(CheckpointError, match=r"file/below` is no folder"):
        Checkpoint.open(tmp_path / "file" / "below", "fraud")


def test_a_folder_with_other_files_is_refused(tmp_path):
    for name in ("notes.txt", "a.csv"):
        (tmp_path / name).write_text("text")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*`a.csv` and 1 more"):
        Checkpoint.open(tmp_path, "fraud")
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "notes.txt"]


def test_what_a_process_left_that_was_killed_while_it_made_one_counts_as_nothing(path):
    path.mkdir()
    for name in ("lock", "state.sqlite.new", "state.sqlite.new-wal"):
        (path / name).write_bytes(b"\0" * 10)
    with opened(path) as checkpoint:
        assert checkpoint.epoch == 0


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 20, b"x"])
def test_a_file_of_another_kind_is_foreign(path, content):
    path.mkdir()
    (path / "state.sqlite").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state.sqlite` is no checkpoint of velo"):
        Checkpoint.open(path, "fraud")
    assert (path / "state.sqlite").read_bytes() == content


def test_a_database_of_another_program_is_foreign(path):
    path.mkdir()
    with contextlib.closing(sqlite3.connect(path / "state.sqlite")) as connection:
        connection.execute("CREATE TABLE keys (key, value)")
    with pytest.raises(CheckpointError, match=r"state.sqlite` is no checkpoint of velo"):
        Checkpoint.open(path, "fraud")


def execute(path, *statements):
    with contextlib.closing(sqlite3.connect(path / "state.sqlite", isolation_level=None)) as base:
        for statement in statements:
            base.execute(statement)


def test_a_database_with_other_tables_is_foreign(written):
    execute(written, "CREATE TRIGGER more AFTER DELETE ON before BEGIN DELETE FROM keys; END")
    with pytest.raises(CheckpointError, match=r"state.sqlite` is no checkpoint of velo"):
        Checkpoint.open(written, "fraud")


def test_a_newer_format_is_named(written):
    execute(written, f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(written, "fraud")
    message = str(raised.value)
    assert f"by a newer velo, in format {FORMAT + 1}; this one reads up to" in message
    assert "update velo" in message


@pytest.mark.parametrize("part", [0.9, 0.5, 0.05])
def test_a_truncated_file_is_torn(written, part):
    file = written / "state.sqlite"
    os.truncate(file, int(file.stat().st_size * part))
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(written, "fraud")
    assert f"the checkpoint `{written}` is torn" in str(raised.value)
    assert "restore the folder from a copy" in str(raised.value)


def test_an_empty_file_is_none(written):
    os.truncate(written / "state.sqlite", 0)
    with pytest.raises(CheckpointError, match=r"is no checkpoint of velo"):
        Checkpoint.open(written, "fraud")


def test_a_missing_file_is_torn(written):
    (written / "state.sqlite").rename(written / "state.sqlite-wal")
    with pytest.raises(CheckpointError, match=r"is torn: `state.sqlite` is missing"):
        Checkpoint.open(written, "fraud")


def test_bytes_that_have_changed_are_found_when_they_are_read(written):
    file = written / "state.sqlite"
    content = bytearray(file.read_bytes())
    content[content.rindex(b"x" * 100) + 50] ^= 1
    file.write_bytes(content)
    with opened(written) as checkpoint, pytest.raises(CheckpointError) as raised:
        checkpoint.load(list(states(500)))
    assert "is torn: the state of the key 'key-" in str(raised.value)
    assert "is not what was written" in str(raised.value)


def test_positions_that_have_changed_are_found(written):
    execute(written, "UPDATE epochs SET cut = x'93810b0a80c0'")
    with pytest.raises(CheckpointError, match="is torn: the positions of epoch 1"):
        Checkpoint.open(written, "fraud")


# Places that cannot be written to.


IMPORT = """
import asyncio, os, sys  # which another user may not be able to read
from velo._checkpoint.checkpoint import Checkpoint
from velo.errors import CheckpointError
"""
OPEN = """
try:
    Checkpoint.open(sys.argv[1], "fraud")
except CheckpointError as error:
    print(error)
"""


def as_nobody(path, script):
    """Runs a script that opens a checkpoint as a user who owns nothing."""
    for folder in [path.parent, *path.parents][:-2]:
        os.chmod(folder, os.stat(folder).st_mode | 0o055)
    script = f"{IMPORT}os.setgid(65534)\nos.setuid(65534)\n{script}"
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


@root
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    said = as_nobody(tmp_path / "new", OPEN)
    assert f"cannot write a checkpoint to `{tmp_path / 'new'}`: permission denied" in said.stdout
    assert "name a folder that this user may write to" in said.stdout


@root
def test_a_folder_that_is_read_only_is_named(written):
    os.chmod(written, 0o755)
    said = as_nobody(written, OPEN)
    assert f"cannot write a checkpoint to `{written}`: permission denied" in said.stdout, said


@root
def test_a_file_that_is_read_only_is_named(written):
    os.chmod(written, 0o777)
    os.chmod(written / "state.sqlite", 0o644)
    os.unlink(written / "lock")
    said = as_nobody(written, OPEN)
    assert f"the checkpoint `{written}` cannot be written to" in said.stdout, said


# A full disk.


async def test_a_full_disk_loses_nothing(written):
    with opened(written) as checkpoint:
        writer = checkpoint._store._writer
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 10}")
        more = {f"more-{n}": dumps({"text": "y" * 200}) for n in range(5000)}
        with pytest.raises(CheckpointError) as raised:
            await checkpoint.commit(2, {"key-0": dumps({"n": 2}), **more}, {0: 20}, {})
        assert f"the disk of the checkpoint `{written}` is full" in str(raised.value)
        assert (checkpoint.epoch, checkpoint.positions) == (1, {0: 10})
    with opened(written) as checkpoint:
        assert checkpoint.load(list(states(500))) == list(states(500).values())
        assert checkpoint.load(["more-0"]) == [None]
        assert (checkpoint.epoch, checkpoint.positions) == (1, {0: 10})


async def test_with_room_again_the_same_commit_goes_through(written):
    with opened(written) as checkpoint:
        writer = checkpoint._store._writer
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 10}")
        more = {f"more-{n}": dumps({"text": "y" * 200}) for n in range(5000)}
        with pytest.raises(CheckpointError):
            await checkpoint.commit(2, more, {0: 20}, {})
        writer.execute("PRAGMA max_page_count = 1000000")
        await checkpoint.commit(2, more, {0: 20}, {})
        assert checkpoint.load(list(more)) == list(more.values())
        assert (checkpoint.epoch, checkpoint.positions) == (2, {0: 20})


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    with mounted(tmp_path / "disk", "1m") as disk:
        yield disk


async def test_a_disk_that_is_really_full(small_disk):
    path = small_disk / "fraud"
    with opened(path) as checkpoint:
        epoch = 0
        with pytest.raises(CheckpointError, match="full"):
            for epoch in range(1, 100):
                await checkpoint.commit(
                    epoch, {epoch: dumps({"text": "x" * 50_000})}, {0: epoch}, {}
                )
        assert checkpoint.epoch == epoch - 1
    copied = path.parent.parent / "copied"
    shutil.copytree(path, copied)
    with opened(copied) as checkpoint:
        assert checkpoint.epoch == epoch - 1
        assert checkpoint.positions == {0: epoch - 1}
        assert all(checkpoint.load(list(range(1, epoch))))


async def test_on_a_disk_that_is_full_from_the_beginning_nothing_is_torn(tmp_path):
    said = set()
    with mounted(tmp_path / "disk", "8k") as disk:
        for size in range(8, 200, 4):
            enlarge(disk, f"{size}k")
            try:
                with opened(disk / "fraud") as checkpoint:
                    await checkpoint.commit(1, {"a": dumps({"n": 1})}, {0: 1}, {})
                break
            except CheckpointError as error:
                said.add(str(error))
        with opened(disk / "fraud") as checkpoint:
            assert checkpoint.load(["a"]) == [dumps({"n": 1})]
    assert any("is full" in text for text in said)
    assert not any("torn" in text for text in said)


# Killed while it writes.

WRITE = """
import asyncio, sys
from velo._checkpoint.checkpoint import Checkpoint
from velo._core import dumps

async def main():
    checkpoint = Checkpoint.open(sys.argv[1], "fraud")
    for epoch in range(checkpoint.epoch + 1, 10**9):
        changes = {key: dumps({"epoch": epoch, "text": "x" * 300}) for key in range(200)}
        await checkpoint.commit(epoch, changes, {0: epoch}, {}, epoch, undoable=True)
        print(epoch, flush=True)

asyncio.run(main())
"""


def test_a_process_that_is_killed_leaves_a_whole_epoch(path):
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        said = [process.stdout.readline() for _ in range(3)]
        process.kill()
        said += process.communicate()[0].splitlines()
        least = max(int(line) for line in said if line.strip())
        with opened(path) as checkpoint:
            epoch = checkpoint.epoch
            assert epoch >= least
            assert checkpoint.positions == {0: epoch}
            assert checkpoint.mark == epoch
            state = dumps({"epoch": epoch, "text": "x" * 300})
            assert checkpoint.load(list(range(200))) == [state] * 200


def test_a_log_that_breaks_off_anywhere_leaves_a_whole_epoch(path, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    while process.stdout.readline() != "3\n":
        pass
    process.kill()
    process.communicate()
    size = (path / "state.sqlite-wal").stat().st_size
    assert size
    epochs = set()
    for part in range(11):
        copied = tmp_path / f"copy-{part}"
        shutil.copytree(path, copied)
        os.truncate(copied / "state.sqlite-wal", size * part // 10)
        with opened(copied) as checkpoint:
            epoch = checkpoint.epoch
            epochs.add(epoch)
            assert (checkpoint.positions, checkpoint.mark) == (
                ({0: epoch}, epoch) if epoch else ({}, None)
            )
            state = dumps({"epoch": epoch, "text": "x" * 300}) if epoch else None
            assert checkpoint.load(list(range(200))) == [state] * 200
    assert len(epochs) > 1
