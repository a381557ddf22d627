"""Processes of one server with sessions of the same function, and attachments that wait in line."""

import asyncio
import logging

import functions
from helpers import HANG, NO_SLOW_STEPS, ask, cancel, run_script, until
from standalone import Daemon
from velo._api import session

SERVER = """
import asyncio, subprocess, sys, warnings
from velo import stream_fn

@stream_fn(mode=sys.argv[1], workers=1)
async def chat(events):
    count = 0
    async for _ in events:
        count += 1
        yield count

async def say(times):
    for _ in range(times):
        async with chat.open(key="ada") as stream:
            await stream.send(0)
            print(await stream.recv(), flush=True)

async def main():
    await say(1)
    if len(sys.argv) == 2:
        other = [sys.executable, *sys.orig_argv[1:], "other"]
        subprocess.run(other, check=True)
    else:
        await say(1)

asyncio.run(main())
"""


def test_two_processes_without_a_shared_supervisor_are_warned_once(tmp_path, mode, monkeypatch):
    monkeypatch.delenv("VELO_SUPERVISOR", raising=False)
    code, output, errors = run_script(tmp_path, SERVER, mode)
    assert (code, output.split()) == (0, ["1", "1", "2"]), errors
    assert errors.count("RuntimeWarning") == 1, errors
    assert "another process of this server has sessions of `chat` too" in errors
    assert "`VELO_SUPERVISOR=daemon`" in errors
    assert ('set `mode="process"`' in errors) == (mode == "inline")


def test_a_shared_supervisor_is_no_reason_to_warn(tmp_path, monkeypatch):
    daemon = Daemon(tmp_path / "s.sock")
    try:
        monkeypatch.setenv("VELO_SUPERVISOR", str(daemon.path))
        code, output, errors = run_script(tmp_path, SERVER, "process")
    finally:
        daemon.close()
    assert (code, output.split()) == (0, ["1", "2", "3"]), errors
    assert "Warning" not in errors, errors


def test_other_functions_and_later_processes_are_none_of_it(tmp_path, mode, monkeypatch):
    """The claim of a process ends with it."""
    monkeypatch.delenv("VELO_SUPERVISOR", raising=False)
    for _ in range(2):
        code, _, errors = run_script(tmp_path, SERVER, mode, "alone", flags=["-W", NO_SLOW_STEPS])
        assert code == 0
        assert "Warning" not in errors, errors


async def test_the_log_says_who_holds_a_key(mode, caplog, monkeypatch):
    counting = functions.numbered.options(mode=mode, timeout=20)
    async with counting.open(key="held") as holder:
        monkeypatch.setattr(session, "_LOOK_AFTER", 0.05)
        waiting = asyncio.create_task(ask(counting, "held", 1))
        await until(lambda: "attach" in caplog.text)
        assert "to attach to key `held` of `numbered`" in caplog.text
        assert f"stream `{holder.name}` of this process has been attached to it" in caplog.text
    assert await asyncio.wait_for(waiting, HANG) == (1, 1)


async def test_one_that_does_not_wait_says_nothing(mode, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="velo.streams")
    counting = functions.numbered.options(mode=mode, timeout=20)
    async with counting.open(key="free") as stream:
        caplog.clear()  # a busy machine may have let this one wait
        monkeypatch.setattr(session, "_LOOK_AFTER", 0.05)
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(ask(counting, "free", 1))
        await asyncio.sleep(0)
        await cancel(waiting)
        await asyncio.sleep(0.1)
        await stream.end()
    assert "to attach" not in caplog.text
