"""One pool for several programs."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

import functions
from helpers import HANG, run_script, start_script, until_sync, write_script
from velo import StreamConfig, stream_fn
from velo.errors import PoolError

# A program that says which worker it has, and goes on when it is told to.
PROGRAM = """
    import asyncio, os, sys
    from velo import stream_fn

    @stream_fn(mode="process", workers=1)
    async def add(events):
        total = 0
        async for event in events:
            total += event
            yield total, os.getpid()

    async def main():
        async with add.open() as stream:
            for line in sys.stdin:
                await stream.send(int(line))
                total, pid = await stream.recv()
                print(total, pid, flush=True)

    asyncio.run(main())
"""


class Program:
    """One that is told numbers, and answers with their sum and its worker."""

    def __init__(self, tmp_path):
        self.process = start_script(write_script(tmp_path, PROGRAM), stdin=-1)

    def add(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        total, pid = map(int, self.process.stdout.readline().split())
        return total, pid

    def end(self):
        _, errors = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 0, errors


def test_two_programs_share_a_worker_and_nothing_else(tmp_path, daemon_at):
    daemon = daemon_at("--workers", 1)
    one, other = Program(tmp_path), Program(tmp_path)
    total, worker = one.add(1)
    assert other.add(10) == (10, worker)
    assert one.add(2) == (3, worker)
    assert other.add(20) == (30, worker)
    state = daemon.status()
    assert {one.process.pid, other.process.pid} <= {client["pid"] for client in state["clients"]}
    assert [(w["pid"], w["links"], w["residents"]) for w in state["workers"]] == [(worker, 2, 2)]
    one.end()
    assert other.add(30) == (60, worker)
    other.end()
    assert total == 1


def test_a_killed_client_gives_everything_back(tmp_path, daemon):
    victim, other = Program(tmp_path), Program(tmp_path)
    victim.add(1)
    assert other.add(1)[0] == 1
    victim.process.kill()

    def gone():
        state = daemon.status()
        pids = {client["pid"] for client in state["clients"]}
        streams = sum(worker["residents"] for worker in state["workers"])
        return victim.process.pid not in pids and streams == 1

    until_sync(gone, HANG, daemon.status)
    victim.process.communicate()
    assert other.add(2)[0] == 3
    other.end()


def test_a_child_that_holds_the_socket_keeps_nothing(tmp_path, daemon):
    """A fork that nobody knows of: the client is its process, not its descriptors."""
    script = """
        import asyncio, ctypes, os, time
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def echo(events):
            async for event in events:
                yield event

        async def main():
            stream = await echo.open()
            await stream.send(1)
            await stream.recv()
            child = ctypes.CDLL(None).fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            print(child, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    process = start_script(write_script(tmp_path, script))
    child = int(process.stdout.readline())
    process.kill()
    process.wait()

    def gone():
        return process.pid not in {client["pid"] for client in daemon.status()["clients"]}

    try:
        until_sync(gone, HANG, daemon.status)
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


async def test_functions_by_path_and_by_value(daemon):
    offset = 40

    @stream_fn(mode="process")
    async def closure(events):
        async for event in events:
            yield event + offset

    assert await closure.run([1, 2]) == [41, 42]
    # By import path, from a folder that only this program looks in.
    assert await functions.running_sum.options(mode="process").run([1, 2, 3]) == [1, 3, 6]


async def test_the_setting_names_a_supervisor(daemon, monkeypatch):
    monkeypatch.delenv("VELO_SUPERVISOR")
    pids = functions.pids.options(mode="process", workers=1)
    own = (await pids.options(supervisor="embedded").run([0]))[0]
    shared = (await pids.options(supervisor=str(daemon.path)).run([0]))[0]
    workers = [worker["pid"] for worker in daemon.status()["workers"]]
    assert shared in workers
    assert own not in workers
    # Both at once, in one event loop; and `auto` is the variable's.
    monkeypatch.setenv("VELO_SUPERVISOR", str(daemon.path))
    assert await pids.run([0]) == [shared]
    assert await pids.options(supervisor="embedded").run([0]) == [own]


async def test_parts_for_different_supervisors_run_in_their_own(daemon, monkeypatch):
    monkeypatch.delenv("VELO_SUPERVISOR")
    add = functions.running_sum.options(mode="process", supervisor=str(daemon.path))
    assert await (add | functions.running_sum.options(mode="process")).run([1, 2, 3]) == [1, 4, 10]


def test_the_default_socket_needs_to_be_asked_for(tmp_path, monkeypatch):
    """Without a setting nothing changes, also while a supervisor runs."""
    from velo._process import supervisors

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("VELO_SUPERVISOR", raising=False)
    assert supervisors.address_of("auto") is None
    assert supervisors.address_of("daemon") == str(tmp_path / "velo" / "supervisor.sock")
    monkeypatch.setenv("VELO_SUPERVISOR", "daemon")
    assert supervisors.address_of("auto") == supervisors.address_of("daemon")
    assert supervisors.address_of("embedded") is None
    monkeypatch.setenv("VELO_SUPERVISOR", "demon")
    with pytest.raises(ValueError, match="`VELO_SUPERVISOR` must be"):
        supervisors.address_of("auto")


def test_wrong_settings():
    with pytest.raises(ValueError, match="`supervisor` must be"):
        StreamConfig(supervisor="embeded")
    with pytest.raises(TypeError, match="`supervisor` must be"):
        StreamConfig(supervisor=3)


async def test_nobody_there_says_how_to_start_one(tmp_path):
    fn = functions.echo.options(mode="process", supervisor=str(tmp_path / "nobody.sock"))
    with pytest.raises(PoolError, match=r"velo supervisor start --socket .*nobody\.sock"):
        await fn.open()


async def test_another_velo_is_refused_by_name(daemon, monkeypatch):
    from velo._process import supervisors

    monkeypatch.setattr(supervisors, "runtime", lambda: "cpython 2.7")
    with pytest.raises(PoolError, match=r"cpython 3\.\d+, this program velo .* on cpython 2\.7"):
        await functions.echo.options(mode="process").open()


async def test_the_quota_of_streams(daemon_at):
    daemon = daemon_at("--workers", 2, "--client-streams", 3)
    echo = functions.echo.options(mode="process")
    streams = [await echo.open() for _ in range(3)]
    with pytest.raises(PoolError, match="--client-streams 3"):
        await echo.open()
    await streams.pop().aclose()
    streams.append(await echo.open())
    for stream in streams:
        await stream.send(1)
        assert await stream.recv() == 1
        await stream.aclose()
    assert daemon.status()["workers"]


def test_the_quota_of_workers(tmp_path, daemon_at):
    """All event loops of a program have the workers that it may have, and no more."""
    daemon_at("--workers", 3, "--client-workers", 1)
    code, output, errors = run_script(
        tmp_path,
        """
        import asyncio, os, threading
        from velo import stream_fn

        mine = set()

        @stream_fn(mode="process", workers=3)
        async def pids(events):
            async for event in events:
                yield os.getpid()

        async def many():
            streams = [await pids.open() for _ in range(4)]
            found = set()
            for stream in streams:
                await stream.send(1)
                found.add(await stream.recv())
            print(len(found))
            mine.update(found)
            print(await asyncio.to_thread(other))
            for stream in streams:
                await stream.aclose()

        def other():
            return set(pids.run_sync([1])) == mine

        asyncio.run(many())
        """,
    )
    assert code == 0, errors
    assert output == "1\nTrue\n"


def test_a_forked_child_is_a_client_of_its_own(tmp_path, daemon):
    script = """
        import asyncio, os, sys
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def add(events):
            total = 0
            async for event in events:
                total += event
                yield total

        def say(totals):
            # In one piece: an unbuffered `print` writes the end of its line by itself.
            os.write(1, f"{totals}\\n".encode())

        say(add.run_sync([1, 2]))
        child = os.fork()
        say(add.run_sync([3, 4]))
        if child:
            os.waitpid(child, 0)
    """
    code, output, errors = run_script(tmp_path, script)
    assert code == 0, errors
    assert sorted(output.splitlines()) == ["[1, 3]", "[3, 7]", "[3, 7]"]
    until_sync(lambda: not [c for c in daemon.status()["clients"] if c["links"]])


async def test_what_a_function_logs_reaches_its_own_client(daemon, caplog):
    @stream_fn(mode="process")
    async def logs(events):
        import logging

        async for event in events:
            logging.getLogger("shared").warning("event %s", event)
            yield event

    assert await logs.run([1, 2]) == [1, 2]
    async with asyncio.timeout(HANG):
        while len([r for r in caplog.records if r.name == "shared"]) < 2:
            await asyncio.sleep(0.005)


def test_nothing_shows_event_data(tmp_path, daemon):
    """While it is on its way: in nothing that the system shows of any process, nor in the log."""
    secret = "number-of-a-card"
    script = """
        import asyncio, os, sys
        from velo import stream_fn

        @stream_fn(mode="process", workers=1, recover="replay", buffer=4)
        async def keeps(events):
            kept = []
            async for event in events:
                kept.append(event)
                yield event, os.getpid()

        async def main():
            secret = "number-" + "of-a-card"
            async with keeps.open() as stream:
                await stream.send({secret: [secret] * 10_000})
                print((await stream.recv())[1], flush=True)
                for _ in range(3):  # results that nobody has taken
                    await stream.send(secret * 10_000)
                sys.stdin.readline()

        asyncio.run(main())
    """
    client = start_script(write_script(tmp_path, script), stdin=-1)
    worker = int(client.stdout.readline())
    state = daemon.status()
    assert worker in [known["pid"] for known in state["workers"]]
    for pid in (client.pid, daemon.pid, state["zygote"], worker):
        shown = what_is_shown(pid)
        assert len(shown) > 10
        assert not [text for text in shown if secret.encode() in text], pid
    assert secret not in daemon.said()
    assert secret not in json.dumps(state)
    _, errors = client.communicate("\n", timeout=HANG)
    assert client.returncode == 0, errors


def what_is_shown(pid):
    """Everything but its memory: environment, command line, names of threads, memory and files."""
    folder = Path("/proc", str(pid))
    files = [folder / name for name in ("environ", "cmdline", "maps", "status", "mountinfo")]
    files += folder.glob("task/*/comm")
    links = [*folder.glob("fd/*"), folder / "cwd", folder / "exe"]
    shown = [file.read_bytes() for file in files]
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            shown.append(os.readlink(link).encode())
    return shown


async def test_a_worker_that_dies_is_told_with_its_signal(daemon):
    from velo.errors import WorkerDied

    pids = functions.pids.options(mode="process", workers=1)
    async with pids.open() as stream:
        await stream.send(1)
        pid = await stream.recv()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as info:
            await stream.recv()
        assert (info.value.pid, info.value.signal) == (pid, signal.SIGKILL)
