"""`velo supervisor`, as one uses it in a shell."""

import json
import os

import pytest

from helpers import HANG, alive, until_sync
from velo.cli.supervisor import status


@pytest.fixture
def shell(velo, monkeypatch, tmp_path):
    """`velo supervisor ...` with a runtime directory of its own; whatever runs is stopped."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def run(*words):
        return velo("supervisor", *words)

    yield run
    run("stop", "--timeout", 0)


def detached(shell, *options):
    done = shell("start", "--detach", *options)
    assert done.code == 0, done.err
    return int(done.out.split("(pid ")[1].split(")")[0])


def test_detach_status_and_stop(shell, tmp_path):
    pid = detached(shell, "--workers", "1:3")
    folder = tmp_path / "velo"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(folder)) == ["supervisor.log", "supervisor.sock"]
    assert alive(pid)
    state = json.loads(shell("status", "--json").out)
    assert (state["pid"], state["min_workers"], state["max_workers"]) == (pid, 1, 3)
    shown = shell("status").out
    assert f"pid {pid}" in shown
    assert "1 to 3 workers" in shown
    again = shell("start", "--detach")
    assert again.code == 1
    assert f"(pid `{pid}`) already serves" in again.err
    done = shell("stop")
    assert (done.code, done.err) == (0, "")
    until_sync(lambda: not alive(pid))
    assert os.listdir(folder) == []


def test_nobody_there(shell):
    for command in ("status", "stop", "drain", "restart", "logs"):
        done = shell(command)
        assert done.code == 1
        assert "no supervisor listens at" in done.err
        assert "`VELO_SUPERVISOR=daemon`" in done.err


def test_a_program_uses_it(shell, velo, monkeypatch):
    detached(shell, "--workers", 1, "--preload", "json")
    monkeypatch.setenv("VELO_SUPERVISOR", "daemon")
    events = b'{"v": 1}\n{"v": 2}\n'
    done = velo("run", "fns.py:sums", "-i", "-", "--mode", "process", stdin=events)
    assert done.results == [1, 3, {"total": 3}], done.err
    assert len(json.loads(shell("status", "--json").out)["workers"]) == 1
    assert shell("restart").code == 0
    done = velo("run", "fns.py:sums", "-i", "-", "--mode", "process", stdin=events)
    assert done.results == [1, 3, {"total": 3}], done.err
    text = shell("logs").out
    for event in ("worker forked", "worker ready", "client came", "link made", "link released"):
        assert event in text
    assert shell("drain").code == 0
    assert shell("status").code == 1


def test_logs_are_followed_to_the_end(shell, velo):
    detached(shell, "--log-format", "json")
    following = velo.start("supervisor", "logs", "--follow")
    assert "supervisor ready" in following.stdout.readline().decode()
    assert shell("restart").code == 0
    assert shell("stop").code == 0
    out, err = following.communicate(timeout=HANG)
    messages = [json.loads(line)["message"] for line in out.decode().splitlines()]
    assert "replacing all workers" in messages
    assert "draining" in messages
    assert (following.returncode, err) == (0, b"")


def test_a_preload_that_fails_is_in_the_log(shell):
    detached(shell, "--workers", "1:1", "--preload", "no_such_module")
    until_sync(lambda: "cannot be preloaded" in shell("logs").out)


def test_a_start_that_fails_says_why(shell, tmp_path):
    (tmp_path / "file").write_text("")
    done = shell("start", "--detach", "--socket", tmp_path / "file")
    assert done.code == 1
    assert "is no socket" in done.err
    assert not (tmp_path / "file.log").exists()


@pytest.mark.parametrize("workers", ["0", "3:2", "two", "1:2:3", "2000"])
def test_wrong_numbers_of_workers(shell, workers):
    done = shell("start", "--workers", workers)
    assert done.code == 2
    assert "--workers" in done.err


def test_control_c_ends_it(velo, tmp_path):
    process = velo.start("supervisor", "start", "--socket", tmp_path / "s.sock")
    until_sync(lambda: (tmp_path / "s.sock").exists())
    process.send_signal(2)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0
    assert b"supervisor ended" in err
    assert b"Traceback" not in err
    assert not (tmp_path / "s.sock").exists()


def test_the_unit_file_names_what_there_is(shell):
    """Its command line is one that this velo understands."""
    unit = (os.path.dirname(__file__), "..", "..", "..", "docs", "velo-supervisor.service")
    with open(os.path.join(*unit)) as file:
        settings = dict(line.strip().split("=", 1) for line in file if "=" in line)
    assert settings["Type"] == "notify"
    words = settings["ExecStart"].split()
    assert words[1:3] == ["supervisor", "start"]
    help_text = shell("start", "--help").out
    assert all(word in help_text for word in words[3:] if word.startswith("--"))


def test_long_names_are_cut_and_figures_are_not(capsys):
    slow = {"key": "k" * 300, "seconds": 0.00123, "awaits": False}
    keys = {"live": 11_111, "opened": 22_222, "ended": 33_333, "evicted": 44_444, "pending": 55_555}
    stream = {
        **{"name": "n" * 300, "key": None, "function": "f" * 300, "worker": 66_666},
        **{"age": 4_000.0, "events": 77_777, "events_per_second": 88_888.0, "queued": 99_999},
        **{"latency_p50": 1_230.0, "latency_p99": 41_200.0, "keys": {**keys, "slowest": [slow]}},
    }
    state = {
        **{"embedded": True, "program": "p", "pid": 1, "velo": "1", "uptime": 1.0, "waiting": 0},
        **{"workers": [], "clients": [], "streams": [stream], "streams_omitted": 0},
        **{"children": [], "detached_sessions": [], "detached": 0},
    }
    status._show(state)
    rows = [line.split() for line in capsys.readouterr().out.split("\n") if "666" in line]
    (*names, _worker, age, events, rate, queued, p50, _, p99, _), lane = rows
    assert [age, events, rate, queued, p50, p99] == [
        *("1:06:40", "77777", "88888", "99999", "1.23", "41.2")
    ]
    assert lane[2:8] == ["66666", "11111", "22222", "33333", "44444", "55555"]
    assert all(name.endswith("…") for name in [*names, *lane[:2], lane[-1]])
