"""Processes that functions and programs start: none of them touches what its parent shares.

Every primitive, whatever the child does and however it ends, in every mode; with `--long` those
that take an interpreter's start for each child, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import forking
from helpers import environment, run_script

FOLDER = Path(forking.__file__).parent
PROGRAM = (
    f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import forking; forking.main(*sys.argv[1:])"
)


def pytest_generate_tests(metafunc):
    if "primitive" in metafunc.fixturenames:
        long = metafunc.config.getoption("--long")
        metafunc.parametrize("primitive", forking.ALL if long else forking.FAST)


@pytest.mark.every_backend
def test_a_neighbour_never_notices(mode, primitive):
    """Nor is any child a second worker: each ends as it should."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode, primitive],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["wrong"] == []
    assert said["sent"]
    assert said["workers"] == 1
    if (mode, primitive) == ("process", "os.fork") and "VELO_SUPERVISOR" not in os.environ:
        assert "went on as if it were worker process" in done.stderr
    assert "RingCorrupted" not in done.stderr


@pytest.mark.every_backend
def test_a_child_of_a_function_is_not_ended_with_its_worker(tmp_path, mode):
    """It begins with default signals; what ends it ends nobody else."""
    code, output, errors = run_script(
        tmp_path,
        f"""
        import asyncio, os, signal
        from velo import stream_fn

        @stream_fn(mode={mode!r})
        async def forks(events):
            async for event in events:
                if (pid := os.fork()) == 0:
                    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
                    good = handlers == [signal.SIG_DFL, signal.default_int_handler]
                    os._exit(0 if good and signal.set_wakeup_fd(-1) == -1 else 1)
                yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        if __name__ == "__main__":
            print(forks.run_sync([1]))
        """,
    )
    if mode == "process":  # inline, they are the program's own affair
        assert output == "[0]\n", errors
    assert code == 0


@pytest.mark.every_backend
@pytest.mark.parametrize("how", ["exit", "raises", "send", "recv", "feed", "run", "garbage"])
def test_a_child_of_the_program_leaves_its_streams_alone(tmp_path, backend, how):
    """However it leaves the block, and whatever it does with the stream: that is refused."""
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, gc, os, sys
        from velo import stream_fn
        from velo.errors import StreamClosed

        @stream_fn(mode="process", workers=1)
        async def count(events):
            n = 0
            async for event in events:
                n += 1
                yield n, event

        async def use(stream, how):
            if how == "exit":
                sys.exit(0)
            if how == "raises":
                raise KeyError
            if how == "garbage":
                gc.collect()
                assert stream.closed
                os._exit(0)
            try:
                if how == "send":
                    await stream.send("child")
                elif how == "recv":
                    await stream.recv()
                elif how == "feed":
                    async for _ in stream.feed(["child"]):
                        pass
                elif how == "run":
                    # One of its own is another matter.
                    assert count.run_sync(["own"]) == [(1, "own")]
                    await stream.end()
            except StreamClosed as error:
                os._exit(0 if "forked" in str(error) else 8)
            os._exit(0 if how == "run" else 9)

        async def main(how):
            async with count.open() as stream:
                await stream.send("a")
                assert await stream.recv() == (1, "a")
                if (pid := os.fork()) == 0:
                    await use(stream, how)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                for k in range(5):
                    await stream.send(k)
                    assert await asyncio.wait_for(stream.recv(), 50) == (k + 2, k)
            print("fine", status, flush=True)

        parent = os.getpid()
        try:
            asyncio.run(main(sys.argv[1]))
        except (SystemExit, KeyError):
            assert os.getpid() != parent
            os._exit(0)
        """,
        how,
    )
    assert (code, output) == (0, "fine 0\n"), errors


@pytest.mark.embedded
def test_functions_of_the_script_itself_in_a_pool(tmp_path, mode):
    """`multiprocessing` finds them in the worker, where the script is not run."""
    code, output, errors = run_script(
        tmp_path,
        f"""
        import multiprocessing
        from velo import stream_fn

        FACTOR = 3

        def times(number):
            return number * FACTOR

        @stream_fn(mode={mode!r})
        async def work(events):
            async for event in events:
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    yield pool.map(times, [1, event])

        print(work.run_sync([2]))
        """,
    )
    assert (code, output) == (0, "[[3, 6]]\n"), errors


@pytest.mark.embedded
def test_a_module_that_forks_while_it_is_preloaded(tmp_path):
    """Its child does not become a second zygote."""
    (tmp_path / "forks_at_import.py").write_text("import os\nCHILD = os.fork()\n")
    code, output, errors = run_script(
        tmp_path,
        """
        from velo import stream_fn

        @stream_fn(mode="process", workers=1, preload=["forks_at_import"])
        async def plus(events):
            async for event in events:
                yield event + 1

        print(plus.run_sync([1, 2]))
        """,
    )
    assert (code, output) == (0, "[2, 3]\n"), errors


@pytest.mark.embedded
def test_how_a_worker_ended_is_known_though_the_program_ignores_sigchld(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        import os, signal, subprocess, sys
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        from velo import stream_fn
        from velo.errors import WorkerDied

        @stream_fn(mode="process", workers=1)
        async def ends(events):
            async for event in events:
                if event == "run":
                    yield subprocess.run([sys.executable, "-c", "exit(3)"]).returncode
                else:
                    os.kill(os.getpid(), signal.SIGKILL)

        print(ends.run_sync(["run"]))
        try:
            ends.run_sync(["die"])
        except WorkerDied as died:
            print(died.signal)
        """,
    )
    assert (code, output) == (0, "[3]\n9\n"), errors


@pytest.mark.embedded
def test_a_process_that_a_function_starts_can_be_interrupted(tmp_path):
    """A worker disregards Ctrl-C, which is its program's; what it starts does not inherit that."""
    code, output, errors = run_script(
        tmp_path,
        """
        import signal, subprocess, sys
        from velo import stream_fn

        WAITS = "import sys, time; print('up', flush=True); time.sleep(60)"

        @stream_fn(mode="process", workers=1)
        async def interrupts(events):
            async for event in events:
                command = [sys.executable, "-c", WAITS]
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                child.stdout.readline()
                child.send_signal(signal.SIGINT)
                yield child.wait(20)

        print(interrupts.run_sync([1]))
        """,
    )
    assert (code, output) == (0, "[-2]\n"), errors


@pytest.mark.embedded
def test_an_array_that_was_received_can_be_read_in_a_child(tmp_path):
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, multiprocessing
        import numpy as np
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def frames(events):
            async for event in events:
                yield np.full(100_000, event)

        def check(frame, answers):
            answers.put(int(frame.sum()))

        async def main():
            context = multiprocessing.get_context("fork")
            answers = context.SimpleQueue()
            async with frames.open() as stream:
                await stream.send(3)
                frame = await stream.recv()
                child = context.Process(target=check, args=(frame, answers))
                child.start()
                child.join()
                print(answers.get(), child.exitcode)

        asyncio.run(main())
        """,
    )
    assert (code, output) == (0, "300000 0\n"), errors
