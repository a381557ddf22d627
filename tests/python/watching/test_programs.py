"""Programs with a supervisor of their own, as `velo top`, `status` and `inspect` see them."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from helpers import HANG, alive, environment, start_script, until_sync, write_script
from shown_program import PROGRAM, Program
from standalone import answer
from terminal import Terminal
from velo import _core


def shell(*words):
    command = [sys.executable, "-m", "velo", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=HANG, check=False
    )


def shell_until(*words, fits):
    """What a command says, once it fits: it goes without a worker that has no turn for 500 ms."""
    deadline = time.monotonic() + HANG
    while not fits((told := shell(*words)).stdout):
        assert time.monotonic() < deadline, told
    return told.stdout


def answers(state):
    return all(stream["name"] for stream in state["streams"])


def test_status_finds_it(program):
    def mine(out):
        (state,) = (one for one in json.loads(out)["supervisors"] if one["pid"] == program.pid)
        return state

    state = mine(shell_until("status", "--json", fits=lambda out: answers(mine(out))))
    assert state["embedded"] is True
    assert state["program"] == "counts.py"
    assert state["socket"] == str(program.socket())
    assert [(one["name"], one["function"]) for one in state["streams"]] == [
        ("counting-1", "__main__:counting"),
        ("counting-2", "__main__:counting"),
    ]
    assert [one["events"] for one in state["streams"]] == [1, 0]
    assert {one["client"] for one in state["streams"]} == {program.pid}
    alone = json.loads(shell("status", "--json", "--pid", program.pid).stdout)
    assert (alone["pid"], len(alone["streams"])) == (program.pid, 2)
    text = shell_until("status", "--pid", program.pid, fits=lambda out: "counting-1" in out)
    assert f"counts.py (pid {program.pid})" in text


def test_inspect_finds_its_streams(program):
    words = ("inspect", "counting-1", "--pid", program.pid)
    told = shell_until(*words, "--json", fits=lambda out: json.loads(out)["streams"])
    (one,) = json.loads(told)["streams"]
    assert one["locals"]["total"] == "5"
    assert (one["events"], one["results"]) == (1, 1)
    assert one["waits_for"] == ["its next event"]
    shown = shell_until(*words, fits=lambda out: "awaits    its next event" in out)
    assert "total  = 5" in shown
    told = []

    def is_refused():
        told[:] = [shell("inspect", "counting-9", "--pid", program.pid)]
        return told[0].returncode == 1

    until_sync(is_refused)
    where = f"the supervisor of process {program.pid}"
    assert f"no stream `counting-9` is open at {where}" in told[0].stderr


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
async def test_top_shows_it_and_ends_a_stream(program, columns, rows):
    command = ["top", "--interval", "0.1", "--pid", program.pid]
    terminal = Terminal(command, columns, rows)
    try:
        await terminal.shows("1 worker", "1 program", "2 streams", "counts.py", "counting-1")
        terminal.press("n\x1b[B\x1b[Bx")
        await terminal.shows("end counting-2? y / n")
        terminal.press("y")
        program.tell("wait")
        assert "ended by hand" in await asyncio.to_thread(program.hear)
        await terminal.shows("ended counting-2", "1 stream ")
        await asyncio.to_thread(program.end)
        await terminal.shows(f"velo: the supervisor of process {program.pid}")
        assert await terminal.ends() == 1
    finally:
        terminal.close()


async def test_top_waits_for_programs(folder, tmp_path):
    """It shows them as they come and go. (Other programs of this user may run beside it.)"""
    terminal = Terminal(["top", "--interval", "0.1"], 200, 50)
    try:
        await terminal.shows("q quit", without=["counts.py"])
        path = write_script(tmp_path, PROGRAM, "counts.py")
        program = await asyncio.to_thread(Program, path)
        await terminal.shows("counts.py", "counting-1")
        await asyncio.to_thread(program.end)
        program.process.stdout.close()
        program.process.stderr.close()
        await terminal.shows("q quit", without=["counts.py"])
        terminal.press("q")
        assert await terminal.ends() == 0
    finally:
        terminal.close()


def test_its_socket_is_its_users_and_goes_with_it(program, folder):
    path = program.socket()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert program.end() == 0
    assert os.listdir(folder) == []


def test_what_a_killed_program_has_left_is_removed(program, folder):
    path = program.socket()
    # It has the name of a socket, and is none: it is nobody's to remove.
    file = folder / path.name.replace(f"-{program.pid}-", "-999999999-")
    file.write_text("mine")
    program.process.kill()
    program.process.wait()
    assert path.exists()
    told = shell("status", "--pid", program.pid)
    assert told.returncode == 1
    assert f"process {program.pid} has no supervisor that can be looked at" in told.stderr
    assert os.listdir(folder) == [file.name]


def test_a_folder_that_others_can_use_is_not_looked_into(program, folder):
    folder.chmod(0o755)
    assert program.socket() is None
    folder.chmod(0o700)
    assert program.socket() is not None


def test_a_program_whose_folder_others_can_use_runs_unseen(folder, tmp_path):
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    process = start_script(write_script(tmp_path, PROGRAM, "counts.py"), stdin=subprocess.PIPE)
    out, err = process.communicate("", timeout=HANG)
    assert (process.returncode, out, err) == (0, "5\n", "")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("order", ["acquire", "preload"])
def test_who_looks_may_do_no_more(program, order):
    line = _core.SupervisorClient.connect(str(program.socket()))
    assert (
        json.loads(answer(line, lambda line: line.status(), _core.Report.Status).text)["viewers"]
        == 1
    )
    if order == "acquire":
        line.acquire(4)
    else:
        line.preload(["json"], [])
    answer_or_end(line)
    state = json.loads(shell("status", "--pid", program.pid, "--json").stdout)
    assert len(state["workers"]) == 1


def test_its_end_is_its_own(program):
    line = _core.SupervisorClient.connect(str(program.socket()))
    line.drain(0.0)
    said = []
    while not said:
        assert select.select([line.fileno()], [], [], HANG)[0]
        said = [one for one in line.poll() if not isinstance(one, _core.Report.Hello)]
    assert isinstance(said[0], _core.Report.Unable)


def answer_or_end(line):
    """Waits until the supervisor has hung up."""
    ended = False
    while not ended:
        assert select.select([line.fileno()], [], [], HANG)[0], "it goes on"
        ended = any(isinstance(one, _core.Report.Lost) for one in line.poll())


def test_a_child_that_it_forks_has_no_part_in_it(program, folder):
    program.tell("fork")
    child = int(program.hear())
    try:
        path = program.socket()
        program.process.kill()
        program.process.wait()
        assert alive(child)
        with pytest.raises(ConnectionError):
            _core.SupervisorClient.connect(str(path))
        assert program.socket() is None
        assert os.listdir(folder) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_velo_run_shows_with_its_keys(folder, tmp_path):
    """Its streams are those of keys, and are found by the key as it is written."""
    script = """
        from velo import stream_fn

        @stream_fn
        async def spent(orders):
            total = 0
            async for order in orders:
                total += order["amount"]
                yield total
    """
    path = write_script(tmp_path, script, "shop.py")
    words = ["run", f"{path}:spent", "--key", "who", "--mode", "process", "--input", "-"]
    run = subprocess.Popen(
        [sys.executable, "-m", "velo", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    try:
        for line in ('{"who": "ann", "amount": 2}', '{"who": 3.10, "amount": 5}'):
            run.stdin.write(f"{line}\n")
        run.stdin.flush()
        assert all(run.stdout.readline() for _ in range(2))
        out = shell_until(
            *("status", "--json", "--pid", run.pid),
            fits=lambda out: all(one["keys"] for one in json.loads(out)["streams"]),
        )
        state = json.loads(out)
        assert state["program"].startswith("velo run ")
        assert sum(one["keys"]["live"] for one in state["streams"]) == 2
        for key, name, total in (("ann", "spent['ann']", "2"), ("3.10", "spent[3.10]", "5")):
            words = ("inspect", "spent", "--key", key, "--json", "--pid", run.pid)
            out = shell_until(*words, fits=lambda out: json.loads(out)["streams"])
            (one,) = json.loads(out)["streams"]
            assert (one["name"], one["locals"]["total"]) == (name, total)
    finally:
        run.stdin.close()
        assert run.wait(HANG) == 0
        run.stdout.close()
