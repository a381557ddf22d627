"""gunicorn forks its workers from a process that has already run streams."""

import json
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest

from helpers import HANG, environment, until_sync, write_script

pytest.importorskip("gunicorn", reason="needs velo-stream[test]")

APP = """
    import json, os
    from velo import stream_fn

    @stream_fn(mode="process", workers=1)
    async def count(events):
        total = 0
        async for event in events:
            total += event
            yield total, os.getpid()

    before = []

    def app(environ, start_response):
        results = count.run_sync([1, 2, 3])
        body = {"totals": [total for total, _ in results], "worker": results[0][1],
                "server": os.getpid(), "before": before}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]
"""

# Run in the process that gunicorn forks its servers from, before it does.
HOOK = """
    def when_ready(server):
        import served
        served.before.append(served.count.run_sync([1])[0][1])
"""


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["each", "preload"])
def test_two_servers_have_workers_of_their_own(tmp_path, preload):
    write_script(tmp_path, APP, "served.py")
    write_script(tmp_path, HOOK, "gunicorn.conf.py")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        bind = f"fd://{listening.fileno()}"
        command = ["-m", "gunicorn", "-w", "2", "-b", bind, "--log-level", "warning", *preload]
        process = subprocess.Popen(
            [sys.executable, *command, "served:app"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
            pass_fds=[listening.fileno()],
        )
    seen = {}

    def asked():
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=HANG) as answer:
                body = json.load(answer)
        except OSError:
            assert process.poll() is None, process.stderr.read().decode()
            return False
        assert body["totals"] == [1, 3, 6]
        seen[body["server"]] = body
        return len(seen) == 2

    try:
        until_sync(asked)
        workers = {body["worker"] for body in seen.values()}
        assert len(workers) == 2, "each server process has a pool of its own"
        if preload:
            ((before,),) = {tuple(body["before"]) for body in seen.values()}
            assert before not in workers
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=HANG)
    until_sync(lambda: not any(child.is_running() for child in family))
    assert b"Traceback" not in said, said.decode()
