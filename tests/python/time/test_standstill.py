"""Time in which nothing of a program runs (`SIGSTOP`, `docker pause`) counts for no limit."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from helpers import HANG, environment, run_script, until_sync, write_script
from velo._time_limit import time_limit

# Seconds. Each limit is longer than the program needs on a busy machine, and shorter than it stands
# still.
LIMIT = 20.0
STANDSTILL = 21.0

PROGRAM = """
import asyncio, os, pathlib, sys
from velo import stream_fn

gate, limit, mode = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
limits = {"mode": mode, "timeout": limit, "event_timeout": limit, "close_timeout": limit}
if mode == "process":
    limits["stall_timeout"] = limit

@stream_fn(**limits)
async def counts(events):
    count = 0
    async for event in events:
        count += 1
        while event == "wait" and not gate.exists():
            await asyncio.sleep(0.01)
        if event == "wait":
            await asyncio.sleep(0.3)  # for timers that are due to go off
        yield count, event

@stream_fn(mode="process", workers=1, event_timeout=limit, stall_timeout=limit)
async def holds_its_worker(events):
    import time
    async for event in events:
        yield "begun"
        while not gate.exists():
            time.sleep(0.01)
        yield "done"

async def source():
    yield "a", "at once"
    yield "b", "wait"
    while not gate.exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # for timers that are due to go off
    yield "a", "after"

async def main():
    idle = await counts.open()
    works = await counts.open()
    closes = await counts.open()
    keyed = []
    async def by_key():
        async for key, result in counts.keyed(source(), key=lambda event: event[0]):
            keyed.append((key, result[0], result[1][1]))
    async def live():
        async with counts.keys() as keys:
            await keys.send("k", "wait")
        assert keys.metrics.results == 1, keys.metrics
    async with asyncio.TaskGroup() as group:
        group.create_task(live())
        async with counts.open(key="k") as session:
            await session.send("first")
            await session.recv()
        for stream in (idle, works, closes):
            await stream.send("at once")
            await stream.recv()
        await works.send("wait")
        await closes.send("wait")
        closing = group.create_task(closes.aclose())
        group.create_task(by_key())
        while not keyed:
            await asyncio.sleep(0.01)
        holding = None
        if mode == "process":
            holding = await holds_its_worker.open()
            await holding.send(1)
            await holding.recv()
        print("ready", flush=True)
        assert await works.recv() == (2, "wait")
        await closing
        assert closes.metrics.queued == 0
        if holding is not None:
            assert await holding.recv() == "done"
            await holding.aclose()
        await asyncio.sleep(0.3)
        assert not idle.closed, idle
        await idle.send("after")
        assert await idle.recv() == (2, "after")
        async with counts.open(key="k") as session:
            await session.send("second")
            assert await session.recv() == (2, "second")
            await session.end()
    assert sorted(keyed) == [("a", 1, "at once"), ("a", 2, "after"), ("b", 1, "wait")], keyed
    await idle.aclose()
    await works.aclose()
    print("right")

asyncio.run(main())
"""

STANDALONE = """
import os, subprocess, sys
socket = sys.argv[1]
command = [sys.executable, "-m", "velo", "supervisor", "start", "--socket", socket]
daemon = subprocess.Popen(command, stderr=subprocess.PIPE)
daemon.stderr.readline()
os.environ["VELO_SUPERVISOR"] = socket
code = subprocess.run([sys.executable, *sys.argv[2:]]).returncode
daemon.terminate()
daemon.wait()
sys.exit(code)
"""


def group(number):
    """The processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == number:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def kill_group(leader):
    if leader.poll() is None:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.communicate()


def stands(process):
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_program_that_stood_still_goes_on(tmp_path):
    """Inline, with workers, and with a standalone supervisor: side by side, to wait once."""
    program = write_script(tmp_path, PROGRAM, "program.py")
    starter = write_script(tmp_path, STANDALONE, "starter.py")
    gate = tmp_path / "gate"
    inline, process = (
        [str(program), str(gate), str(LIMIT), mode] for mode in ("inline", "process")
    )
    commands = {
        "inline": inline,
        "process": process,
        "standalone": [str(starter), str(tmp_path / "s.sock"), *process],
    }
    with contextlib.ExitStack() as stack:
        programs = {}
        for where, command in commands.items():
            programs[where] = started = subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
                start_new_session=True,
            )
            stack.callback(kill_group, started)
            assert started.stdout.readline() == "ready\n", (where, started.stderr.read())
            os.killpg(started.pid, signal.SIGSTOP)
            until_sync(lambda pid=started.pid: all(map(stands, group(pid))))
        time.sleep(STANDSTILL)
        gate.touch()
        for started in programs.values():
            os.killpg(started.pid, signal.SIGCONT)
        for where, started in programs.items():
            output, errors = started.communicate(timeout=HANG)
            assert (started.returncode, output) == (0, "right\n"), (where, errors)
            assert "Error" not in errors, where
            assert "StallWarning" not in errors, where


STOPS = """
import asyncio, os, signal, sys
from velo import stream_fn

@stream_fn(timeout=5)
async def stops(events):
    async for event in events:
        os.kill(os.getpid(), signal.SIGSTOP)
        yield event

async def main():
    if sys.argv[1] == "keyed":
        print([result async for result in stops.keyed([7], key=lambda event: "k")])
    else:
        async with stops.open() as stream:
            await stream.send(7)
            print([("k", await stream.recv())])

asyncio.run(main())
"""


@pytest.mark.parametrize("form", ["plain", "keyed"])
def test_a_step_in_which_a_program_stood_still_is_not_slow(tmp_path, form):
    program = write_script(tmp_path, STOPS, "stops.py")
    process = subprocess.Popen(
        [sys.executable, program, form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    until_sync(lambda: stands(psutil.Process(process.pid)))
    time.sleep(1.5)  # longer than it may run between two looks at the clock
    process.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=HANG)
    assert (output, errors) == ("[('k', 7)]\n", "")


async def test_a_time_limit_of_its_own():
    """As `asyncio.timeout`: it ends the block, and no other cancellation is taken for its own."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with time_limit(0.05):
            await asyncio.sleep(HANG)
    assert time.monotonic() - began >= 0.05
    async with time_limit(HANG):
        pass

    async def waits():
        async with time_limit(HANG):
            await asyncio.sleep(HANG)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_limits_run_in_a_process_that_was_forked(tmp_path, mode):
    """What notices a standstill in its parent is not there: it notices its own."""
    code, output, errors = run_script(
        tmp_path,
        f"""
        import asyncio, os, sys
        from velo import stream_fn

        @stream_fn(mode={mode!r}, workers=1)
        async def echo(events):
            async for event in events:
                yield event

        async def child():
            async with echo.options(timeout=0.4).open() as stream:
                while not stream.closed:
                    await asyncio.sleep(0.01)
            print("closed")

        async def parent():
            async with echo.options(timeout=100).open() as stream:
                await stream.send(1)
                await stream.recv()
                pid = os.fork()
                if pid == 0:
                    asyncio._set_running_loop(None)
                    asyncio.run(child())
                    sys.stdout.flush()
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
            print("parent")

        asyncio.run(parent())
        """,
    )
    assert (code, output.split()) == (0, ["closed", "parent"]), errors


def test_a_clock_that_a_test_turns_stands_still_by_itself(tmp_path):
    """That the process has stood still is none of its time, and adds to no limit."""
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, os, subprocess, sys

        import pytest
        from velo import _core, stream_fn
        from velo._time_limit import time_limit
        from velo.errors import EventTimeout
        from velo.testing import run_virtual

        STOP = '''
        import os, signal, sys, time
        os.kill(int(sys.argv[1]), signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(int(sys.argv[1]), signal.SIGCONT)
        '''.replace("\\n        ", "\\n")
        limit = _core.RunningLimit(0.1)
        while _core.stood_still(60) < 2:
            subprocess.run([sys.executable, "-c", STOP, str(os.getpid())], check=True)
        del limit

        @stream_fn(timeout=100, event_timeout=10)
        async def counts(events):
            count = 0
            async for event in events:
                count += 1
                await asyncio.sleep(event)
                yield count

        async def clicks():
            yield 1
            await asyncio.sleep(101.5)
            yield 1

        def took(began):
            return round(asyncio.get_running_loop().time() - began)

        async def main():
            now = asyncio.get_running_loop().time
            async with counts.open() as stream:
                began = now()
                while not stream.closed:
                    await asyncio.sleep(0.5)
                # Real time counts as idle, too; a standstill that counts makes it 102 or more.
                assert 90 < took(began) < 102, ("a stream", took(began))

            async with counts.open() as stream:
                await stream.send(30)
                began = now()
                with pytest.raises(EventTimeout):
                    await stream.recv()
                assert took(began) == 10, ("an event", took(began))

            for expected in (1, 1):
                async with counts.open(key="k") as session:
                    await session.send(1)
                    assert await session.recv() == expected, "a session"
                await asyncio.sleep(101.5)

            found = [item async for item in counts.keyed(clicks(), key=lambda event: "k")]
            assert found == [("k", 1), ("k", 1)], ("keys", found)

            began = now()
            with pytest.raises(TimeoutError):
                async with time_limit(10):
                    await asyncio.sleep(100)
            assert took(began) == 10, ("a block", took(began))
            print("right")

        run_virtual(main())
        """,
    )
    assert (code, output) == (0, "right\n"), errors
