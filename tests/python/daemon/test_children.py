"""Processes that functions start: who looks at a supervisor, or at the machine, is shown them."""

import json
import os
import signal
import subprocess
import sys

from helpers import alive, environment, run_script, until_sync
from standalone import Daemon

STARTS = """
    import os, signal, subprocess, sys
    from velo import stream_fn

    @stream_fn(mode="process", workers=1)
    async def starts(events):
        async for event in events:
            program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            if (forked := os.fork()) == 0:
                signal.pause()
                os._exit(0)
            yield program.pid, forked, os.getpid()

    print(*starts.run_sync([1])[0])
"""


def shown(daemon):
    command = [sys.executable, "-m", "velo", "status", "--socket", str(daemon.path)]
    state = subprocess.run([*command, "--json"], env=environment(), capture_output=True, check=True)
    people = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return {child["pid"]: child for child in json.loads(state.stdout)["children"]}, people.stdout


def test_status_and_doctor_show_them(tmp_path):
    daemon = Daemon(tmp_path / "s.sock", "--workers", 1)
    children = []
    try:
        script = f"import os; os.environ['VELO_SUPERVISOR'] = {str(daemon.path)!r}\n"
        code, output, errors = run_script(tmp_path, script + STARTS.replace("\n    ", "\n"))
        assert code == 0, errors
        *children, worker = map(int, output.split())
        found, people = shown(daemon)
        assert sorted(found) == sorted(children)
        assert {child["worker"] for child in found.values()} == {worker}
        assert all(child["alive"] for child in found.values())
        assert "started by functions" in people
        os.kill(worker, signal.SIGKILL)
        until_sync(lambda: not alive(worker))
        found, people = shown(daemon)
        assert sorted(found) == sorted(children), "they outlive their worker"
        assert not any(child["alive"] for child in found.values())
        assert "worker gone" in people
        doctor = [sys.executable, "-m", "velo", "doctor", "--json"]
        said = subprocess.run(doctor, env=environment(), capture_output=True, check=False)
        checks = {check["name"]: check for check in json.loads(said.stdout)["checks"]}
        assert checks["processes of functions"]["verdict"] == "warn"
        assert any(str(pid) in checks["processes of functions"]["found"] for pid in children)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        daemon.close()
