"""Functions that start processes in every way there is, beside a neighbour that starts none.

`main(MODE, PRIMITIVE)` prints what each kind of child came to, as JSON.
"""

import asyncio
import concurrent.futures
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

from velo import stream_fn
from velo.errors import StreamClosed

LONGEST = 40  # seconds until a child that does not end is an error
METHODS = ("fork", "spawn", "forkserver")
FAST = ("os.fork", "thread", "posix_spawn", "subprocess", "Process:fork", "Pool:fork")
FAST = (*FAST, "Executor:fork")
ALL = (
    *FAST,
    *(f"{kind}:{method}" for kind in ("Process", "Pool", "Executor") for method in METHODS[1:]),
)
DOES = ("quiet", "logs", "prints", "uses", "velo", "threads")
# A child of a worker may leave in any way; one of the program itself would be a second program.
ENDS = ("returns", "yields", "sys.exit", "os._exit", "raises", "terminated", "killed")

# The events of the stream whose function forks, for a child to try.
events_of_parent = None


def child(does, ends):
    """What a child does, and how it ends."""
    if does == "logs":
        logging.getLogger("forking").warning("a child logs")
    elif does == "prints":
        print("a child prints", file=sys.stderr, flush=True)
    elif does == "uses":
        try_events()
    elif does == "velo":
        assert double.run_sync([1, 2]) == [2, 4]
    elif does == "threads":
        thread = threading.Thread(target=logging.getLogger("forking").error, args=("a thread",))
        thread.start()
        thread.join()
    if ends == "sys.exit":
        sys.exit(5)
    elif ends == "os._exit":
        os._exit(5)
    elif ends == "raises":
        raise ValueError("on purpose")
    elif ends in ("terminated", "killed"):
        time.sleep(60)
    return os.getpid()


def try_events():
    """Ask for an event of the parent's stream: in a child of a worker that is refused."""
    if events_of_parent is None:
        return  # it was started afresh, or its parent is the program itself
    try:
        events_of_parent.__anext__().send(None)
    except StreamClosed as error:
        if "forked" not in str(error):
            os._exit(8)
    except StopIteration:
        os._exit(9)  # an event that is the parent's
    else:
        os._exit(9)


@stream_fn
async def double(events):
    async for event in events:
        yield event * 2


@stream_fn
async def counts(events):
    """The neighbour."""
    count = 0
    async for event in events:
        count += 1
        yield count, event, os.getpid()


@stream_fn
async def forks(events):
    global events_of_parent
    async for primitive, does, ends in events:
        if os.environ.get("VELO_WORKER"):
            events_of_parent = events
        kind, _, method = primitive.partition(":")
        if kind == "os.fork":
            pid = os.fork()
            if pid == 0:
                child(does, ends)
                if ends == "yields":
                    yield "as if it were its parent"
                # Or it asks for the next event.
            else:
                yield await wait(pid, ends)
        else:
            yield await KINDS[kind](method, does, ends)


async def wait(pid, ends):
    """The exit code of a child that is ended as it is to be."""
    if ends in ("terminated", "killed"):
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGTERM if ends == "terminated" else signal.SIGKILL)
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        await asyncio.sleep(0.005)
    raise TimeoutError(f"the child {pid}, which was to be {ends}, has not ended in {LONGEST} s")


async def in_thread(_method, does, ends):
    def fork():
        pid = os.fork()
        if pid == 0:
            code = 7
            try:
                child(does, ends)
                code = 0
            finally:
                os._exit(code)
        return pid

    pid = await asyncio.get_running_loop().run_in_executor(None, fork)
    return await wait(pid, ends)


async def posix_spawn(_method, _does, ends):
    code = "import time; time.sleep(60)" if ends in ("terminated", "killed") else "exit(5)"
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    return await wait(pid, ends)


async def run_subprocess(_method, _does, ends):
    """Also with a `preexec_fn`, which runs between fork and exec."""
    code = "import time; time.sleep(60)" if ends in ("terminated", "killed") else "exit(5)"
    process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=os.getpid)
    pid, process.returncode = process.pid, 0
    return await wait(pid, ends)


async def process(method, does, ends):
    started = multiprocessing.get_context(method).Process(target=child, args=(does, ends))
    started.start()
    if ends == "terminated":
        started.terminate()  # at once
    elif ends == "killed":
        started.kill()
    deadline = time.monotonic() + LONGEST
    while started.is_alive():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{started} has not ended in {LONGEST} s")
        await asyncio.sleep(0.005)
    return started.exitcode


async def pool(method, does, ends):
    with multiprocessing.get_context(method).Pool(2) as made:
        try:
            return len(made.starmap(child, [(does, ends)] * 3))
        except ValueError:
            return 1


async def executor(method, does, ends):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as made:
        try:
            return len([made.submit(child, does, ends).result() for _ in range(3)])
        except concurrent.futures.BrokenExecutor:
            return 5
        except ValueError:
            return 1


KINDS = {
    "thread": in_thread,
    "posix_spawn": posix_spawn,
    "subprocess": run_subprocess,
    "Process": process,
    "Pool": pool,
    "Executor": executor,
}


def cases(primitive, mode):
    """What may be done with a primitive: what a child does, how it ends, and what that gives."""
    kind, _, _ = primitive.partition(":")
    codes = {"terminated": -15, "killed": -9, "os._exit": 5}
    if kind in ("Pool", "Executor"):
        codes = {"returns": 3, "raises": 1} | ({"os._exit": 5} if kind == "Executor" else {})
    elif kind == "Process":
        codes |= {"returns": 0, "sys.exit": 5, "raises": 1}
    elif kind == "thread":
        codes |= {"returns": 0}
    elif kind == "os.fork" and mode != "inline":
        codes |= {"returns": 1, "yields": 70, "sys.exit": 5, "raises": 1}
    elif kind in ("posix_spawn", "subprocess"):
        return [("quiet", ends, code) for ends, code in codes.items()]
    return [(does, ends, code) for does in DOES for ends, code in codes.items()]


async def run(mode, primitive):
    """Run all cases beside a neighbour; what came of each, and of the neighbour."""
    settings = {"mode": mode, **({"workers": 1} if mode == "process" else {})}
    over = asyncio.Event()

    async def neighbour():
        sent, pids = 0, set()
        async with counts.options(**settings).open() as stream:
            while not over.is_set():
                async for count, event, pid in stream.feed(range(sent, sent + 50)):
                    sent += 1
                    assert (count, event) == (sent, sent - 1)
                    pids.add(pid)
                await asyncio.sleep(0)
        return sent, len(pids)

    beside = asyncio.create_task(neighbour())
    found = []
    async with forks.options(**settings, close_timeout=5).open() as stream:
        for does, ends, code in cases(primitive, mode):
            await stream.send((primitive, does, ends))
            came = await asyncio.wait_for(stream.recv(), 50)
            found.append((does, ends, code, came))
    over.set()
    sent, workers = await beside
    wrong = [case for case in found if case[2] != case[3]]
    return {"cases": len(found), "wrong": wrong, "sent": sent > 0, "workers": workers}


def main(mode, primitive):
    print(json.dumps(asyncio.run(run(mode, primitive))), flush=True)
