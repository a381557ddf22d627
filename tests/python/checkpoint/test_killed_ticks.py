"""A program that moves records from a file to a file, and is killed at each step of a tick."""

import json
import signal
import subprocess
import sys

import pytest

from helpers import HANG, SUPPORT, environment
from replayed import by_key, expected

PROGRAM = """
import asyncio
import sys

from paced import Paced
from velo import connect, stream_fn


@stream_fn(mode=sys.argv[1])
async def sequence(events, state):
    async for event in events:
        state["n"] = state.get("n", 0) + 1
        state["hash"] = (state.get("hash", 7) * 31 + event["v"]) % 1_000_003
        yield {"k": event["k"], "result": [state["n"], state["hash"]]}
        state["k"] = event["k"]
    yield {"k": state["k"], "result": ["end", state["n"]]}


async def main():
    _, _, source, sink, checkpoint = sys.argv
    await sequence.keyed(Paced(connect.file(source), 50), key="k").into(
        connect.file(sink), checkpoint=checkpoint, checkpoint_every=0.01
    )


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("step", range(1, 7))
def test_from_file_to_file(mode, step, tmp_path):
    events = [{"k": (5 * n + n // 3) % 7, "v": n} for n in range(400)]
    source, sink, program = (tmp_path / name for name in ("in.ndjson", "out.ndjson", "program.py"))
    source.write_text("".join(json.dumps(event) + "\n" for event in events))
    program.write_text(PROGRAM)
    command = [sys.executable, program, mode, source, sink, tmp_path / "checkpoint"]

    def run(failpoint=""):
        variables = environment(SUPPORT, VELO_FAILPOINT=failpoint)
        return subprocess.run(command, env=variables, timeout=HANG).returncode

    assert run(f"tick:{step}:3") == -signal.SIGKILL
    assert run(f"tick:{step}") == -signal.SIGKILL
    assert run() == 0
    results = [json.loads(line) for line in sink.read_text().splitlines()]
    pairs = [(result["k"], tuple(result["result"])) for result in results]
    assert by_key(pairs) == expected(events)
