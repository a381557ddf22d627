"""`/ready` and `/live` of `velo run --metrics`, asked while runs go on and stand still."""

import pytest

from helpers import write_script
from probing import Probed

FUNCTIONS = """
    import asyncio, os, time
    from velo import stream_fn

    @stream_fn
    async def waits(events):
        async for event in events:
            while not os.path.exists("go"):
                await asyncio.sleep(0.01)
            yield event

    @stream_fn
    async def holds(events):
        async for event in events:
            while not os.path.exists("go"):
                time.sleep(0.01)
            yield event
"""
EVENT = b'{"k":1}\n'


@pytest.fixture
def probed(velo):
    write_script(velo.folder, FUNCTIONS, "fns.py")

    def start(function, *args):
        return Probed(velo.start("run", f"fns:{function}", "--metrics", "127.0.0.1:0", *args))

    return start


def test_a_run_that_waits_for_events_is_ready_and_alive(probed):
    run = probed("waits", "-i", "-")
    run.until("/ready")
    run.until("/live")
    assert run("/ready")[1] == {"ready": True, "why": []}
    assert run("/live")[1] == {"live": True, "why": []}
    for patience in ("x", "0", "-1", "nan"):
        status, answer = run(f"/live?patience={patience}")
        assert (status, list(answer)) == (400, ["error"])
    assert run.end() == 0


def test_events_that_nobody_handles(probed, velo):
    run = probed("waits", "-i", "-")
    run.process.stdin.write(EVENT)
    run.process.stdin.flush()
    for path in ("/ready", "/live"):
        run.until(f"{path}?patience=0.5", "1 events were read, and none was handled")
        run.until(path)
    velo.file("go", "")
    run.until("/ready?patience=0.5")
    assert run.end() == 0


def test_a_function_that_holds_the_event_loop(probed, velo):
    run = probed("holds", "-i", "-")
    run.until("/ready")
    run.process.stdin.write(EVENT)
    run.process.stdin.flush()
    for path in ("/ready", "/live"):
        run.until(f"{path}?patience=2", "event loop has not run")
        run.until(path)
    velo.file("go", "")
    run.until("/ready?patience=2")
    assert run.end() == 0


def test_the_partition_that_is_full_is_named(probed, velo):
    for name in "ab":
        velo.file(f"{name}.ndjson", EVENT.decode() * 20)
    velo.file("quiet.ndjson", "")
    inputs = (f"file://{velo.folder}/{name}.ndjson?follow=true" for name in ("a", "quiet"))
    args = [word for url in inputs for word in ("-i", url)]
    run = probed("waits", *args, "-k", "k", "-o", "out", "--max-pending", "5")
    run.until("/ready?patience=0.5", "a.ndjson was consumed")
    run.until("/ready")
    velo.file("go", "")
    run.until("/ready?patience=0.5")
    run.process.terminate()
    assert run.end() == 143
