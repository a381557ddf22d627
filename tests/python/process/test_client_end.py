"""Clients that end, in whatever way: quickly, and nothing is left of them."""

import os
import signal

import psutil
import pytest

from helpers import HANG, alive, family, run_script, start_script, until_sync, write_script

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

OPEN_STREAMS = """
    import asyncio, os, signal, sys
    from velo import stream_fn

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored

    @stream_fn(mode="process", workers=2, close_timeout=3600)
    async def pids(events):
        async for _ in events:
            yield os.getpid()
        await asyncio.sleep(3600)

    async def main():
        streams = [await pids.open() for _ in range(4)]
        for stream in streams:
            await stream.send(0)
        found = {await stream.recv() for stream in streams}
        print(*found, flush=True)
        LAST

    asyncio.run(main())
"""


def started(tmp_path, last):
    """A client with open streams, and its workers."""
    script = write_script(tmp_path, OPEN_STREAMS.replace("LAST", last))
    process = start_script(script)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers, process.communicate()
    return process, workers


def test_killed_client_leaves_nothing(tmp_path):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    assert len(everybody) >= 3
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


def test_killed_client_with_a_stopped_worker_leaves_nothing(tmp_path):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    os.kill(workers[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


def test_killed_client_with_a_stopped_zygote_leaves_nothing(tmp_path):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    zygote = psutil.Process(workers[0]).ppid()
    assert zygote in everybody
    for pid in (zygote, workers[0]):
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


def test_killed_client_whose_zygote_imports_for_ever_leaves_nothing(tmp_path):
    """What it imports never asks whether anybody is left."""
    mark = tmp_path / "importing"
    (tmp_path / "endless.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nimport time\ntime.sleep(1000)\n"
    )
    script = """
        import asyncio
        from velo import stream_fn

        @stream_fn(mode="process", workers=1, preload=["endless"])
        async def echo(events):
            async for event in events:
                yield event

        echo.run_sync([1])
    """
    process = start_script(write_script(tmp_path, script))
    until_sync(mark.exists)
    everybody = family(process.pid)
    assert everybody
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


def test_killed_client_with_a_busy_worker_leaves_nothing(tmp_path):
    """A worker that never gets to its event loop."""
    script = write_script(
        tmp_path,
        """
        import asyncio, os
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def busy(events):
            yield os.getpid()
            async for _ in events:
                while True:
                    pass

        async def main():
            stream = await busy.open()
            print(await stream.recv(), flush=True)
            await stream.send(0)
            await asyncio.sleep(60)

        asyncio.run(main())
        """,
    )
    process = start_script(script)
    worker = int(process.stdout.readline())
    everybody = {*family(process.pid), worker}
    process.kill()
    process.wait()
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signalled_client_leaves_nothing(tmp_path, name):
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    process.send_signal(getattr(signal, name))
    process.wait(HANG)
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


def test_exit_with_open_streams_is_clean_and_waits_for_nothing(tmp_path):
    """The functions take an hour to end, and their streams would allow that."""
    process, workers = started(tmp_path, "globals()['kept'] = streams")
    everybody = {*family(process.pid), *workers}
    output, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "panicked" not in errors
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)
    assert not output


def test_exit_inside_the_loop_is_clean(tmp_path):
    process, workers = started(tmp_path, "sys.exit(4)")
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 4, errors
    assert "panicked" not in errors
    until_sync(lambda: not any(map(alive, workers)), HANG, lambda: workers)


def test_exit_with_a_stopped_worker_is_bounded(tmp_path):
    process, workers = started(tmp_path, "input()")
    process.kill()
    process.wait()
    script = OPEN_STREAMS.replace("LAST", "import signal; os.kill(min(found), signal.SIGSTOP)")
    code, _, errors = run_script(tmp_path, script)
    assert code == 0, errors
    until_sync(lambda: not any(map(alive, workers)), HANG, lambda: workers)


def test_control_c(tmp_path):
    """At a terminal it reaches every process of the group; only the client acts on it."""
    process, workers = started(tmp_path, "await asyncio.sleep(60)")
    everybody = {*family(process.pid), *workers}
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=HANG)
    # The client's own report, of a cancelled task and then the interrupt; none of a worker.
    assert errors.count("Traceback") <= 2, errors
    assert errors.endswith("KeyboardInterrupt\n")
    assert "panicked" not in errors
    assert process.returncode in (-signal.SIGINT, 130)
    until_sync(lambda: not any(map(alive, everybody)), HANG, lambda: everybody)


@pytest.mark.parametrize("call", ["run_sync(EVENTS)", "keyed_sync(EVENTS, key=lambda event: 0)"])
def test_control_c_in_run_sync(tmp_path, call):
    """The function is cancelled, the caller goes on and may use velo again."""
    script = write_script(
        tmp_path,
        f"""
        import asyncio, os, sys
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def sleeps(events):
            try:
                async for event in events:
                    if event:
                        print("sleeping", flush=True)
                        await asyncio.sleep(60)
                    yield event
            finally:
                print("finally", flush=True)

        try:
            sleeps.{call.replace("EVENTS", "[0, 1]")}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(sleeps.{call.replace("EVENTS", "[0, 0]")}, flush=True)
        """,
    )
    process = start_script(script)
    assert process.stdout.readline() == "sleeping\n"
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors
    assert output.split("\n")[:3] == ["finally", "interrupted", "finally"], (output, errors)
    assert ("[0, 0]" if "run_sync" in call else "[(0, 0), (0, 0)]") in output


def test_the_thread_that_opened_the_first_stream_may_end(tmp_path):
    """Parent-death signals follow the thread that forked, which must not be one that ends."""
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, os, threading, time
        from velo import _core, stream_fn

        @stream_fn(mode="process", workers=1)
        async def echo(events):
            async for event in events:
                yield event

        thread = threading.Thread(target=lambda: echo.run_sync([1]))
        thread.start()
        thread.join()
        before = _core.status()
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            time.sleep(0.001)  # the system sends the signal before the thread is gone
        assert echo.run_sync([2]) == [2]
        after = _core.status()
        assert after.zygote == before.zygote
        assert [w.pid for w in after.workers] == [w.pid for w in before.workers]
        print("same")
        """,
    )
    assert (code, output) == (0, "same\n"), errors
