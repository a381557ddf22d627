"""Sessions of a supervisor that was started with `--checkpoint`: their states outlive it."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

import functions
from helpers import HANG, ask, environment, run_script, until, until_sync, write_script
from small_disk import mounted
from stored_functions import expected, marks_both_ends, obeys, sequence
from velo import _core
from velo._checkpoint.keys import pack
from velo._checkpoint.store import Store
from velo.errors import CheckpointError, PoolError, StreamClosed, WorkerDied

LONG = ("--checkpoint-every", 1000)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "states"


@pytest.fixture
def keeper_at(daemon_at, folder):
    """Starts a supervisor that stores states of sessions: `keeper_at("--ttl", 1)`."""

    def start(*options, **settings):
        more = () if "--checkpoint-every" in options else ("--checkpoint-every", 0.02)
        return daemon_at(
            "--workers", 2, "--idle-timeout", 1, "--checkpoint", folder, *more, *options, **settings
        )

    return start


def stored(folder, key, function="stored_functions.sequence"):
    """The state of a key on the disk; None where there is none."""
    if not (folder / function / "state.sqlite").exists():
        return None
    store = Store(folder / function, writes=False)
    try:
        row = store.rows([pack(key)]).get(pack(key))
        return None if row is None else _core.loads(row.state, False)
    finally:
        store.close()


async def until_stored(folder, key, n, **more):
    await until(lambda: (stored(folder, key, **more) or {}).get("n") == n)


async def tell(fn, key, *events):
    """Attaches, sends events, and returns the result of the last one."""
    async with fn.open(key=key) as stream:
        for event in events:
            await stream.send(event)
            result = await asyncio.wait_for(stream.recv(), HANG)
    return result


def checkpoint_of(daemon):
    return json.loads(daemon.status()["checkpoint"])


async def test_it_is_stored_while_a_program_is_attached(keeper_at, folder):
    keeper_at()
    async with sequence.open(key="k") as stream:
        for n in range(1, 4):
            await stream.send(n)
            await stream.recv()
            await until_stored(folder, "k", n)


async def test_after_its_last_attachment_it_is_stored_at_once(keeper_at, folder):
    keeper_at(*LONG)
    await tell(sequence, "k", 1, 2)
    await until_stored(folder, "k", 2)


async def test_it_survives_a_worker_that_is_killed(keeper_at, folder):
    keeper_at()
    async with sequence.open(key="k") as stream:
        await stream.send(1)
        worker = (await stream.recv())[2]
        await until_stored(folder, "k", 1)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(stream.recv(), HANG)
    n, value, other = await tell(sequence, "k", 2)
    assert (n, value) == expected([1, 2])
    assert other != worker


async def test_it_survives_a_supervisor_that_is_killed(keeper_at, folder):
    """Who is attached is told, since nothing would be stored any more."""
    daemon = keeper_at()
    await tell(sequence, "detached", 1, 2)
    await until_stored(folder, "detached", 2)
    async with sequence.open(key="k") as stream:
        await stream.send(1)
        await stream.recv()
        await until_stored(folder, "k", 1)
        daemon.kill()
        with pytest.raises(CheckpointError, match="open the key again"):
            await asyncio.wait_for(stream.recv(), HANG)
    keeper_at()
    assert (await tell(sequence, "k", 2))[:2] == expected([1, 2])
    assert (await tell(sequence, "detached", 3))[:2] == expected([1, 2, 3])


async def test_a_stop_stores_all(keeper_at, folder):
    """Also of programs that are attached to the end."""
    daemon = keeper_at(*LONG, "--stop-timeout", 0)
    await tell(sequence, "detached", 1, 2)
    async with sequence.open(key="k") as stream:
        await stream.send(5)
        await stream.recv()
        await asyncio.to_thread(daemon.stop)
        with pytest.raises((StreamClosed, WorkerDied)):
            await asyncio.wait_for(stream.recv(), HANG)
    keeper_at()
    assert (await tell(sequence, "k", 6))[:2] == expected([5, 6])
    assert (await tell(sequence, "detached", 3))[:2] == expected([1, 2, 3])


async def test_workers_that_are_replaced_hand_it_on(keeper_at):
    daemon = keeper_at(*LONG)
    async with sequence.open(key="attached") as stream:
        await stream.send(1)
        before = (await stream.recv())[2]
        detached = (await tell(sequence, "detached", 1))[2]
        daemon.restart()
        await stream.send(2)
        assert (await stream.recv())[2] == before
        assert (await tell(sequence, "detached", 2))[:2] == expected([1, 2])
    n, value, after = await tell(sequence, "attached", 3)
    assert (n, value) == expected([1, 2, 3])
    assert after not in (before, detached)


async def test_an_idle_session_leaves_the_memory_and_its_function_sees_no_end(keeper_at, tmp_path):
    daemon = keeper_at(*LONG)
    fn = marks_both_ends.options(timeout=0.05)
    path = str(tmp_path / "marks")
    assert await tell(fn, "k", path, path) == 2
    await until(lambda: functions.marks(path) == "cancelled")
    until_sync(lambda: daemon.status()["detached"] == 0)
    assert await tell(fn, "k", path) == 3


async def test_nothing_is_lost_where_sessions_leave_and_come_back(keeper_at):
    """Attachments cross with the end of idle sessions, and with the change of workers."""
    daemon = keeper_at()
    fn = sequence.options(timeout=0.002)
    rounds, known = 50, {key: [] for key in "abc"}

    async def use(key):
        for _ in range(rounds):
            async with fn.open(key=key) as stream:
                event = random.randrange(1000)
                known[key].append(event)
                await stream.send(event)
                assert (await asyncio.wait_for(stream.recv(), HANG))[:2] == expected(known[key])
            await asyncio.sleep(random.choice([0, 0.001, 0.002, 0.003]))

    users = [asyncio.create_task(use(key)) for key in "abcabc"]
    await until(lambda: len(known["a"]) > rounds or any(user.done() for user in users))
    daemon.restart()
    await asyncio.gather(*users)
    for key, events in known.items():
        assert (await tell(fn, key, None))[:2] == expected(events)
        assert len(events) == 2 * rounds


async def test_a_function_that_returns_ends_it(keeper_at, folder):
    keeper_at()
    name = "stored_functions.obeys"
    assert (await tell(obeys, "k", 1, 2))[0] == 2
    await until_stored(folder, "k", 2, function=name)
    async with obeys.open(key="k") as stream:
        await stream.send("return")
        with pytest.raises(StreamClosed):
            await asyncio.wait_for(stream.recv(), HANG)
    assert (await tell(obeys, "k", 1))[0] == 1
    async with obeys.open(key="other") as stream:
        await stream.send(1)
        await stream.recv()
        await until_stored(folder, "other", 1, function=name)
        await stream.end()
    await until(lambda: stored(folder, "other", name) is None)


async def test_after_an_exception_it_goes_on_from_the_last_tick(keeper_at, folder):
    keeper_at()
    async with obeys.open(key="k") as stream:
        await stream.send(1)
        await stream.recv()
        await until_stored(folder, "k", 1, function="stored_functions.obeys")
        await stream.send("raise")
        with pytest.raises(ValueError, match="as it was told"):
            await asyncio.wait_for(stream.recv(), HANG)
    assert (await tell(obeys, "k", 1))[0] == 2


async def test_a_function_that_is_always_busy_is_stored_between_its_events(keeper_at, folder):
    """It never waits for an event, since the next one is there."""
    keeper_at()
    done = False

    async def many():
        while not done:
            yield 0.005

    async with obeys.open(key="k") as stream:
        async for n, _ in stream.feed(many()):
            known = stored(folder, "k", "stored_functions.obeys")
            done = done or (known is not None and n > known["n"] > 3)
            assert n < 10_000


APP = """
from velo import stream_fn

def to_tenfold(state, version):
    assert version == 1
    return {{"tenfold": 10 * state["sum"]}}

@stream_fn(mode="process", workers=1{settings})
async def {name}(events, state):
    async for event in events:
        state["{field}"] = state.get("{field}", 0) + event
        yield state["{field}"]
"""
TELL = """
import asyncio, sys
import app

async def main():
    async with app.{name}.open(key="k") as stream:
        await stream.send(int(sys.argv[1]))
        print(await stream.recv())

asyncio.run(main())
"""


class Program:
    """A program, whose code changes; the supervisor is started again with it."""

    def __init__(self, tmp_path, keeper_at):
        self.path = tmp_path
        self.keeper_at = keeper_at
        self.daemon = None

    def run(self, number, name="sums", field="sum", settings=""):
        """Stops, has other code, goes on, and returns what it says, or its error."""
        if self.daemon is not None:
            assert self.daemon.stop() == 0
        write_script(self.path, APP.format(name=name, field=field, settings=settings), "app.py")
        self.daemon = self.keeper_at()
        code, output, error = run_script(self.path, TELL.format(name=name), str(number))
        return output.strip() if code == 0 else error


def test_new_code_migrates_it(tmp_path, keeper_at):
    program = Program(tmp_path, keeper_at)
    assert program.run(1) == "1"
    assert program.run(2) == "3"
    changed = {"field": "tenfold", "settings": ", state_version=2"}
    said = program.run(5, **changed)
    assert "the state of the key 'k' in the checkpoint" in said
    assert "is of version 1, and `app:sums` has `state_version=2`: give it `migrate=`" in said
    changed["settings"] += ", migrate=to_tenfold"
    assert program.run(5, **changed) == "35"
    assert program.run(5, **changed) == "40"
    assert "run the newer code" in program.run(5)
    changed["settings"] = ", state_version=3, migrate=lambda state, version: 1 / 0"
    assert "`migrate` of `app:sums` has raised for the state of the key 'k'" in program.run(
        5, **changed
    )


def test_a_function_with_a_new_name_is_told(tmp_path, keeper_at, folder):
    program = Program(tmp_path, keeper_at)
    assert program.run(1) == "1"
    assert program.run(1, name="totals") == "1"
    assert "states of `app:totals` are kept from now on, beside those of `app:sums`" in (
        program.daemon.said()
    )
    program.daemon.stop()
    rename = [sys.executable, "-m", "velo", "checkpoint", "rename", folder / "app.sums"]
    subprocess.run([*rename, "app:totals"], check=True, env=environment(), timeout=HANG)
    assert "are both checkpoints of `app:totals`" in start(tmp_path / "s.sock", folder)
    (folder / "app.totals").rename(tmp_path / "old")
    program.daemon = None
    assert program.run(1, name="totals") == "2"


def test_two_programs_share_it(tmp_path, keeper_at):
    """A script, and another one that imports it, mean the same function."""
    keeper_at()
    write_script(tmp_path, APP.format(name="sums", field="sum", settings=""), "app.py")
    own = (tmp_path / "app.py").read_text() + TELL.format(name="sums").replace("import app", "")
    own = own.replace("app.sums", "sums")
    folder = tmp_path / "own"
    folder.mkdir()
    write_script(folder, own, "app.py")
    code, output, error = run_script(tmp_path, TELL.format(name="sums"), "1")
    assert (code, output.strip()) == (0, "1"), error
    run = subprocess.run(
        [sys.executable, folder / "app.py", "2"],
        capture_output=True,
        text=True,
        timeout=HANG,
        env=environment(),
        check=False,
    )
    # The session of the first one is there, and is of other code.
    assert "has a session in" in run.stderr


async def test_two_supervisors_cannot_have_one_folder(keeper_at, folder):
    daemon = keeper_at()
    said = start(folder.parent / "other.sock", folder)
    assert f"is in use by process {daemon.pid}" in said


def start(socket, folder, *options):
    """Runs a supervisor that is expected not to start, and returns what it says."""
    command = [sys.executable, "-m", "velo", "supervisor", "start", "--socket", str(socket)]
    command += ["--checkpoint", str(folder), *options]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG, env=environment(), check=False
    )
    assert run.returncode != 0
    return run.stderr


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text("x"), "is no folder"),
        (lambda path: (path.mkdir(), (path / "notes.txt").write_text("x")), "holds `notes.txt`"),
        (
            lambda path: ((path / "photos").mkdir(parents=True), (path / "photos/a.jpg").touch()),
            "holds `photos`",
        ),
        (
            lambda path: (path.mkdir(), (path / "state.sqlite").write_bytes(b"x" * 5000)),
            "is the checkpoint of one function",
        ),
        (
            lambda path: (
                (path / "a.b").mkdir(parents=True),
                (path / "a.b/state.sqlite").write_bytes(b"x" * 5000),
            ),
            "is no checkpoint of velo",
        ),
    ],
    ids=["a file", "a file in it", "a folder in it", "a checkpoint of a run", "a foreign file"],
)
def test_garbage_is_named_and_stays_as_it_is(tmp_path, folder, make, says):
    make(folder)
    before = sorted(str(path) for path in folder.rglob("*") if path.name != "lock")
    assert says in start(tmp_path / "s.sock", folder)
    assert sorted(str(path) for path in folder.rglob("*") if path.name != "lock") == before


async def test_without_a_checkpoint_nothing_is_stored(daemon):
    assert daemon.status()["checkpoint"] == ""
    n, _, worker = await tell(sequence, "k", 1)
    os.kill(worker, signal.SIGKILL)
    until_sync(lambda: worker not in [one["pid"] for one in daemon.status()["workers"]])
    assert (await tell(sequence, "k", 1))[0] == n == 1


async def test_a_function_without_a_state_is_not_stored(keeper_at, folder):
    daemon = keeper_at()
    fn = functions.numbered.options(mode="process", workers=1)
    assert await ask(fn, "k", "x") == (1, "x")
    assert checkpoint_of(daemon)["made"] is None
    assert not list(folder.glob("*/state.sqlite"))


async def test_an_object_is_refused_where_its_program_sees_it(keeper_at, folder):
    keeper_at()
    async with obeys.open(key="k") as stream:
        await stream.send("object")
        await stream.recv()
        with pytest.raises(CheckpointError, match="the key 'k' of .* holds a pickle"):
            while True:
                with contextlib.suppress(StreamClosed):  # it has ended: `recv` says why
                    await stream.send(1)
                await asyncio.wait_for(stream.recv(), HANG)
    assert stored(folder, "k", "stored_functions.obeys") is None


async def test_an_object_is_stored_where_that_is_trusted(keeper_at, folder):
    daemon = keeper_at("--trust")
    await tell(obeys, "k", "object")
    await until(lambda: checkpoint_of(daemon)["made"] is not None)
    daemon.restart()
    assert (await tell(obeys, "k", 1))[0] == 2


async def test_a_key_is_forgotten_after_its_ttl(keeper_at, folder):
    daemon = keeper_at("--ttl", 1)
    await tell(sequence, "k", 1)
    await until_stored(folder, "k", 1)
    daemon.restart()
    store = Store(folder / "stored_functions.sequence", writes=False)
    changed = store.rows([pack("k")])[pack("k")].changed
    store.close()
    await until(lambda: time.time() > changed + 2.5)
    assert (await tell(sequence, "k", 1))[0] == 1


async def test_a_torn_state_is_named_and_costs_one_key(keeper_at, folder):
    daemon = keeper_at()
    for key in ("k", "other"):
        await tell(sequence, key, 1)
        await until_stored(folder, key, 1)
    daemon.stop()
    file = folder / "stored_functions.sequence" / "state.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE keys SET crc = crc + 1 WHERE key = ?", [pack("k")])
    connection.close()
    daemon = keeper_at()
    with pytest.raises(CheckpointError, match="the state of the key 'k' is not what was written"):
        await tell(sequence, "k", 1)
    assert "a state of `stored_functions:sequence` cannot be loaded" in daemon.said()
    assert "'k'" not in daemon.said()
    assert (await tell(sequence, "other", 1))[0] == 2


async def test_on_a_full_disk_sessions_go_on_and_the_next_tick_tries_again(keeper_at, tmp_path):
    with mounted(tmp_path / "disk", "256k") as disk:
        daemon = keeper_at("--checkpoint", disk / "states")
        await tell(sequence, "k", 1)
        await until_stored(disk / "states", "k", 1)
        (disk / "filler").write_bytes(b"")
        with open(disk / "filler", "ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError:
                pass
        async with sequence.open(key="k") as stream:
            sent = 1
            while checkpoint_of(daemon)["error"] is None:
                sent += 1
                await stream.send(sent)
                assert (await asyncio.wait_for(stream.recv(), HANG))[0] == sent
                assert sent < 100_000
            assert "is full" in checkpoint_of(daemon)["error"]
            assert checkpoint_of(daemon)["unsaved"] == 1
            assert "sessions are not stored: the disk of the checkpoint" in daemon.said()
            told = subprocess.run(
                [sys.executable, "-m", "velo", "status", "--socket", str(daemon.path)],
                capture_output=True,
                text=True,
                timeout=HANG,
                env=environment(),
                check=True,
            )
            assert "1 states are not stored, for 0:" in told.stdout
        # Its state leaves the worker, and is in the supervisor until there is room.
        daemon.restart()
        assert (await tell(sequence, "k", sent + 1))[0] == sent + 1
        (disk / "filler").unlink()
        await until_stored(disk / "states", "k", sent + 1)
        until_sync(lambda: checkpoint_of(daemon)["error"] is None)
        assert "states of sessions are stored again" in daemon.said()
        daemon.stop()


def test_velo_checkpoint_works_on_it(tmp_path, keeper_at, folder):
    def velo(*words, fails=False):
        run = subprocess.run(
            [sys.executable, "-m", "velo", "checkpoint", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=HANG,
            env=environment(),
            check=False,
        )
        assert bool(run.returncode) == fails, run.stderr
        return run.stderr if fails else run.stdout

    daemon = keeper_at()
    asyncio.run(tell(sequence, "k", 1, 2))
    asyncio.run(tell(obeys, "k", 1))
    until_sync(lambda: (stored(folder, "k") or {}).get("n") == 2)
    until_sync(lambda: stored(folder, "k", "stored_functions.obeys") is not None)
    one = folder / "stored_functions.sequence"
    assert velo("get", one, "--key", '"k"').startswith('{"key": "k", "state": {"n": 2')
    assert "function   stored_functions:obeys" in velo("inspect", folder)
    assert f"used by    process {daemon.pid}" in velo("inspect", one)
    assert velo("verify", folder).count("is whole, with 1 keys") == 2
    assert "holds the checkpoints of 2 functions" in velo("export", folder, fails=True)
    assert "is in use by a supervisor" in velo("delete", one, "--key", '"k"', fails=True)
    velo("copy", folder, tmp_path / "backup")
    daemon.stop()
    velo("set", one, "--key", '"k"', '{"n": 10, "hash": 3}')
    velo("delete", folder / "stored_functions.obeys", "--key", '"k"')
    velo("compact", folder)
    keeper_at()
    assert asyncio.run(tell(sequence, "k", 1))[0] == 11
    assert asyncio.run(tell(obeys, "k", 1))[0] == 1


POINTS = ["keeper:1", "keeper:2", "keeper:3", "session:1", "session:2"]


def pytest_generate_tests(metafunc):
    if "occasion" in metafunc.fixturenames:
        long = metafunc.config.getoption("--long")
        metafunc.parametrize("occasion", range(1, 26) if long else (1, 2, 5, 9))


class Client:
    """A program that goes on after each kill, and checks each result.

    Attributes:
        sent: The events that the state has, and perhaps one more.
        kills: How often its session has ended.

    """

    def __init__(self, folder):
        self.folder = folder
        self.sent = []
        self.kills = 0
        self._least = 0

    async def work(self, done):
        """Attaches, and sends events until it is done, or its session ends."""
        with contextlib.suppress(CheckpointError, PoolError, StreamClosed, WorkerDied):
            async with asyncio.timeout(HANG), sequence.open(key="k") as stream:
                await stream.send(None)
                n, value, _ = await stream.recv()
                assert n >= self._least, "older than a tick that was seen"
                del self.sent[n:]
                assert (n, value) == expected(self.sent), "half-written, or out of order"
                while not done():
                    event = random.randrange(1000)
                    self.sent.append(event)
                    await stream.send(event)
                    assert (await stream.recv())[:2] == expected(self.sent)
                    self._least = max(self._least, (stored(self.folder, "k") or {}).get("n", 0))
            return
        self.kills += 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_any_step_the_state_is_that_after_some_event(
    point, occasion, keeper_at, folder
):
    """Never half-written, never older than a tick that was seen, and in order."""
    daemon = keeper_at(prefix=("env", f"VELO_FAILPOINT={point}:{occasion}"))
    client = Client(folder)
    await client.work(lambda: False)
    assert client.kills == 1
    killed = point.startswith("keeper")
    await asyncio.to_thread(daemon.process.wait if killed else daemon.stop)
    keeper_at()
    more = len(client.sent) + 20
    await client.work(lambda: len(client.sent) == more)
    assert client.kills == 1


async def test_storm_of_kills(keeper_at, folder, request):
    """Of workers and supervisors, at any moment."""
    kills = 100 if request.config.getoption("--long") else 6
    daemon, client = keeper_at(), Client(folder)
    while client.kills < kills:
        working = asyncio.create_task(client.work(lambda: False))
        events = len(client.sent) + random.randrange(200)
        await until(lambda most=events: working.done() or len(client.sent) > most)
        workers = [worker["pid"] for worker in daemon.status()["workers"] if worker["pid"]]
        if workers and random.random() < 0.5:
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        else:
            daemon.kill()
            daemon = keeper_at()
        await asyncio.wait_for(working, 2 * HANG)
    more = len(client.sent) + 20
    await client.work(lambda: len(client.sent) == more)
    assert len(client.sent) == more
