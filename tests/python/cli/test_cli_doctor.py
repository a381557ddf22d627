"""`velo doctor`: what it finds on this machine, and on ones that are worse."""

import json
import os
import resource
import socket
import subprocess
import sys

import pytest

from helpers import environment
from velo.cli.doctor import examine, kernel, leftovers, limits, machine
from velo.cli.doctor.check import FAIL, OK, WARN, Check


def doctor(*args, limit=None, **env):
    """Runs it; the exit code and what it printed."""

    def before():
        if limit is not None:
            resource.setrlimit(*limit)

    done = subprocess.run(
        [sys.executable, "-m", "velo", "doctor", *args],
        capture_output=True,
        text=True,
        env=environment(**env),
        preexec_fn=before,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_velo_works_where_its_tests_run():
    code, said = doctor("--json")
    report = json.loads(said)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert code == 0
    assert report["works"]
    assert FAIL not in verdicts.values()
    assert verdicts["a stream"] != FAIL
    assert all(check["found"] for check in report["checks"])
    assert all(check["advice"] for check in report["checks"] if check["verdict"] != OK)


def test_the_table_fits_a_terminal():
    code, said = doctor(COLUMNS="80")
    assert code == 0
    assert all(len(line) <= 80 for line in said.splitlines())
    for name in ("a stream", "cores", "open files", "sealed memory", "runtime folder"):
        assert name in said


def test_what_fails_is_named_with_its_setting_and_makes_the_exit_code_1():
    code, said = doctor("--json", limit=(resource.RLIMIT_NOFILE, (40, 40)))
    report = json.loads(said)
    files = next(check for check in report["checks"] if check["name"] == "open files")
    assert code == 1
    assert not report["works"]
    assert files["verdict"] == FAIL
    assert "ulimit -n" in files["advice"]


def test_a_stream_that_cannot_run_is_found_with_its_reason():
    code, said = doctor("--json", limit=(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    checks = {check["name"]: check for check in json.loads(said)["checks"]}
    assert code == 1
    assert checks["a stream"]["verdict"] == FAIL
    assert "ulimit -f" in checks["a stream"]["found"]
    assert checks["file size"]["verdict"] == FAIL


def test_the_runtime_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert leftovers.runtime_folder().verdict == OK, "it will be made"
    folder = tmp_path / "velo"
    folder.mkdir(mode=0o755)
    found = leftovers.runtime_folder()
    assert found.verdict == WARN
    assert "chmod 700" in found.advice
    folder.chmod(0o700)
    path = folder / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert leftovers.runtime_folder().verdict == OK
    found = leftovers.runtime_folder()
    assert found.verdict == WARN
    assert f"rm {path}" in found.advice


def test_a_segment_that_was_left_behind():
    # Found by its first bytes; tests in other processes look for names that begin with `velo`.
    path = f"/dev/shm/test_of_velo_{os.getpid()}"
    try:
        with open(path, "wb") as file:
            file.write(b"velolink")
            file.truncate(8192)
        found = leftovers.shared_memory()
        assert found.verdict == WARN
        assert path in found.advice
    finally:
        os.unlink(path)
    assert path not in leftovers.shared_memory().advice


@pytest.mark.parametrize(
    ("files", "quota", "memory"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "1000", "memory.current": "9"}, 1.5, (1000, 9)),
        ({"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ({"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}, 0.5, None),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None, None),
        ({"memory.limit_in_bytes": "77", "memory.usage_in_bytes": "7"}, None, (77, 7)),
        ({}, None, None),
    ],
)
def test_quotas_of_both_kinds_of_cgroups(tmp_path, monkeypatch, files, quota, memory):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "cgroups", lambda: [("", tmp_path)])
    assert machine.cpu_quota() == quota
    assert machine.memory_limit() == memory
    if quota == 0.5:
        assert machine.cores().verdict == WARN


def test_few_processes(tmp_path, monkeypatch):
    (tmp_path / "pids.max").write_text("10")
    (tmp_path / "pids.current").write_text("8")
    monkeypatch.setattr(limits, "cgroups", lambda: [("pids", tmp_path)])
    found = limits.processes()
    assert found.verdict == FAIL
    assert "--pids-limit" in found.advice


def test_a_check_that_does_not_pass_says_what_to_change():
    assert Check("cores", OK, "two").advice == ""
    for verdict in (WARN, FAIL):
        with pytest.raises(ValueError, match="does not say what to change"):
            Check("cores", verdict, "none")


def test_a_check_that_cannot_be_run_ends_no_other(monkeypatch):
    def broken():
        raise KeyError("no such file")

    module = sys.modules[examine.__module__]  # its name is that of the command
    monkeypatch.setattr(module, "CHECKS", (broken, kernel.doorbells))
    first, other = examine()
    assert (first.name, first.verdict, other.verdict) == ("broken", WARN, OK)
    assert "no such file" in first.found


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("memfd_create", kernel.sealed_memory),
        ("eventfd", kernel.doorbells),
        ("pidfd_open", kernel.process_handles),
    ],
)
def test_a_sandbox_that_forbids_a_call(monkeypatch, name, check):
    def forbidden(*args):
        raise PermissionError(1, "Operation not permitted")

    assert check().verdict == OK
    monkeypatch.setattr(os, name, forbidden)
    found = check()
    assert found.verdict == FAIL
    assert name in found.found
    assert "sandbox" in found.advice
