"""`/ready` and `/live` of `velo run --metrics` while a server is away."""

import signal
import subprocess
import sys

import pytest

from helpers import HANG
from probing import Probed

pytestmark = pytest.mark.slow  # it is about programs

APP = """
from velo import stream_fn

@stream_fn
async def counts(events, state):
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        yield state["n"]
"""


@pytest.fixture
def run(tmp_path):
    """Start `velo run` in a folder of its own."""
    (tmp_path / "app.py").write_text(APP)
    started = []

    def start(*args):
        command = [sys.executable, "-m", "velo", "run", "app.py:counts", *args]
        process = subprocess.Popen(
            [*command, "-k", "k", "--metrics", "127.0.0.1:0"],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return Probed(process)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def stopped(run):
    run.process.send_signal(signal.SIGTERM)
    run.process.wait(HANG)
    return run.process.returncode


def test_a_source_without_its_server_is_not_ready_and_lives(redis, run, tmp_path):
    probed = run("-i", f"{redis.url}/probed", "-o", "out.ndjson")
    probed.until("/ready")
    redis.kill()
    probed.until("/ready", "no connection to")
    probed.until("/live")
    redis.start()
    probed.until("/ready")
    assert stopped(probed) == 143


def test_a_sink_that_answers_no_more(redis, run, tmp_path):
    (tmp_path / "in.ndjson").write_text("")
    probed = run(
        *("-i", f"file://{tmp_path}/in.ndjson?follow=true"),
        *("-o", f"{redis.url}/written", "--checkpoint", "kept", "--checkpoint-every", "0.1"),
    )
    probed.until("/ready")
    redis.freeze()
    try:
        with open(tmp_path / "in.ndjson", "a") as file:
            file.write('{"k":1}\n')
        probed.until("/ready?patience=1", "of `redis written` has not returned")
        probed.until("/live?patience=1")
    finally:
        redis.thaw()
    probed.until("/ready?patience=1")
    assert stopped(probed) == 143
