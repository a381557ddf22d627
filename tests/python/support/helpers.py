"""What the tests share: waiting for conditions, looking at processes, running scripts."""

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil

import velo

# The repository.
ROOT = Path(__file__).resolve().parents[3]

# Helpers that scripts may import.
SUPPORT = Path(__file__).resolve().parent

# Scripts use the velo that is tested, wherever it comes from.
PACKAGE = Path(velo.__file__).resolve().parents[1]

# Seconds. What takes longer hangs, on a machine that is busy with other things too: the bound of
# every wait, and no judgement of speed.
HANG = 60

# A filter of warnings, for programs that have to say nothing: a busy machine makes any step of an
# inline function slow, and velo warns of that. The class of that warning would have Python import
# velo before the program does.
NO_SLOW_STEPS = "ignore:a step of the stream function"


async def until(condition, timeout=HANG, describe=lambda: ""):
    """Waits for a condition, letting the event loop work, and fails when it does not come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s {describe()}"
        await asyncio.sleep(0.002)


def until_sync(condition, timeout=HANG, describe=lambda: ""):
    """Waits for a condition without an event loop."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {describe()}"
        time.sleep(0.01)


def _wake_ups(pid):
    """How often the threads of a process have gone to sleep and were woken again.

    Without those of Kafka's client, which other tests may have in this process.
    """
    count = 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:  # it has ended
        return count
    for thread in threads:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/status") as f:
            status = f.read()
            if not status.startswith("Name:\trdk:"):
                count += int(status.split("\nvoluntary_ctxt_switches:")[1].split("\n")[0])
    return count


async def fall_silent(pids, seconds=0.5, most=5):
    """Waits until none of these processes wakes up more than `most` times in so many seconds.

    One that does something periodically never gets there; how fast the machine is does not matter.
    """

    async def woken():
        before = [_wake_ups(pid) for pid in pids]
        await asyncio.sleep(seconds)
        return [_wake_ups(pid) - count for pid, count in zip(pids, before, strict=True)]

    async with asyncio.timeout(HANG):
        while max(await woken()) > most:
            pass


async def blocked(task, turns=20):
    """Gives everybody time to work; returns whether the task still waits."""
    for _ in range(turns):
        await asyncio.sleep(0.002)
        if task.done():
            return False
    return True


async def one_is_refused(first, second):
    """Runs two operations of which only one may wait; returns the refusal, and the task that waits.

    It may be either: one that has waited longer waits anew after each wake-up.
    """
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    async with asyncio.timeout(HANG):
        (refused,), (waits,) = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return refused.exception(), waits


async def cancel(task):
    """Cancels a task and waits for it."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def culprit_of(link):
    """The stream that the worker of a link runs: its number, its name and its event."""
    culprit = link.culprit()
    return culprit and (culprit.stream, culprit.name, culprit.event)


async def drain(stream):
    """All remaining results."""
    return [result async for result in stream]


async def ask(fn, key, event):
    """Attaches to a stream with a key, sends an event, and returns the result."""
    async with fn.open(key=key) as stream:
        await stream.send(event)
        return await stream.recv()


async def pid_of(stream):
    """The worker of a stream of `functions.pids`."""
    await stream.send(0)
    return await stream.recv()


def notes(error):
    """What was added to an error on its way."""
    return "\n".join(getattr(error, "__notes__", ()))


def open_fds():
    """The open descriptors of this process, with what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid):
    """The processes below one."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def environment(*folders, **more):
    """The environment in which a script finds this velo, and modules in these folders."""
    paths = [str(PACKAGE), *map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def write_script(folder, text, name="script.py"):
    """Writes a script and returns its path."""
    path = folder / name
    # In one step: a program that was just started may be about to read the one before.
    new = folder / f"{name}.new"
    new.write_text(textwrap.dedent(text))
    return new.replace(path)


def start_script(path, *args, **options):
    """Starts a script of its own session, its output captured."""
    return subprocess.Popen(
        [*options.pop("before", ()), sys.executable, *options.pop("flags", ()), str(path), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        **options,
    )


def run_script(folder, text, *args, timeout=HANG, **options):
    """Runs a script to its end: exit code, output, errors."""
    process = start_script(write_script(folder, text), *args, **options)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"script hangs; it said {output!r} and {errors!r}") from None
    return process.returncode, output, errors
