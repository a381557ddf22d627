"""`velo run --follow`: files that grow, rotate and are cut."""

import json
import os
import signal

import pytest

from helpers import HANG, until_sync
from velo.cli.following import Followed


def add(path, *values):
    with open(path, "a") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)


class Following:
    """A `velo run --follow` of `echo`, and what it has written so far."""

    def __init__(self, velo, *args):
        self.out = velo.folder / "out.ndjson"
        self.process = velo.start("run", "fns:echo", "--follow", "-o", "out.ndjson", *args)

    def results(self):
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        return [json.loads(line) for line in lines]

    def wait(self, *expected):
        until_sync(lambda: self.results() == list(expected), HANG, self.results)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 128 + signal.SIGTERM
        return err.decode()


def test_a_file_that_grows_rotates_and_is_cut(velo):
    log = velo.folder / "log.ndjson"
    run = Following(velo, "-i", "log.ndjson")  # it is not there yet
    until_sync(run.out.exists)
    add(log, 1, 2)
    run.wait(1, 2)
    with open(log, "a") as file:
        file.write("3")
        file.flush()
        add(log.with_suffix(".sign"), 0)
        file.write("4\n")
    run.wait(1, 2, 34)
    with open(log, "a") as old:  # as a logger that has not heard yet of the rotation
        os.rename(log, log.with_suffix(".1"))
        log.touch()
        old.write("5\n")
        old.flush()
        run.wait(1, 2, 34, 5)
    add(log, 6)
    run.wait(1, 2, 34, 5, 6)
    os.truncate(log, 0)
    # Once it was seen to be short: what grows beyond the old end before that is another file's.
    until_sync(lambda: position(run.process.pid, log) == 0)
    add(log, 7, 8, 9)
    run.wait(1, 2, 34, 5, 6, 7, 8, 9)
    assert "stopped: 8 events" in run.stop()


def position(pid, path):
    """How far a process has read a file."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{fd}") == str(path):
            with open(f"/proc/{pid}/fdinfo/{fd}") as info:
                return int(info.readline().split()[1])
    return None


def test_several_files_and_headers_of_their_own(velo):
    first, second = velo.folder / "a.csv", velo.folder / "b.csv"
    first.write_text("v,w\n1,2\n")
    second.write_text("x\n")
    run = Following(velo, "-i", "?.csv")
    run.wait({"v": 1, "w": 2})
    with open(second, "a") as file:
        file.write("5\n\n7,8\n")
    run.wait({"v": 1, "w": 2}, {"x": 5})
    os.rename(first, velo.folder / "a.old")
    first.write_text("z\n9\n")
    run.wait({"v": 1, "w": 2}, {"x": 5}, {"z": 9})
    assert "b.csv:4: 2 fields, where the header has 1; skipped" in run.stop()


def test_a_line_without_its_end_is_not_taken_when_it_stops(velo):
    (velo.folder / "log.ndjson").write_text("1\n2")
    run = Following(velo, "-i", "log.ndjson")
    run.wait(1)
    run.stop()
    assert run.results() == [1]


def test_limit_ends_it(velo):
    (velo.folder / "log.ndjson").write_text("1\n2\n3\n")
    done = velo("run", "fns:echo", "--follow", "-i", "log.ndjson", "--limit", "2")
    assert (done.code, done.results) == (0, [1, 2])


@pytest.mark.parametrize("path", ["-", "in.ndjson.gz", "folder.ndjson"])
def test_what_cannot_grow(velo, path):
    (velo.folder / "folder.ndjson").mkdir()
    done = velo("run", "fns:echo", "--follow", "-i", path)
    assert done.code == 2
    assert "`--follow` is for" in done.err


def test_the_rest_of_a_rotated_file_comes_first(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"1")
    file = Followed(str(path))
    assert file.read() == b"1"
    with open(path, "ab") as old:
        os.rename(path, tmp_path / "log.1")
        assert file.read() == b""  # its name is nobody's
        path.touch()
        assert file.read() == b""  # nothing is in the new one
        old.write(b"2")
        old.flush()
        path.write_bytes(b"3")
        assert file.read() == b"2"
    assert [file.read() for _ in range(3)] == [None, b"3", b""]
    os.truncate(path, 0)
    assert [file.read() for _ in range(2)] == [None, b""]
    path.unlink()
    assert file.read() == b""
    file.close()
