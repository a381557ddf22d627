"""One key, any process: programs that share a supervisor attach to the same streams."""

import asyncio
import contextlib
import json
import os
import signal

import psutil
import pytest

import functions
from helpers import (
    HANG,
    alive,
    ask,
    cancel,
    fall_silent,
    run_script,
    start_script,
    until,
    until_sync,
    write_script,
)
from velo import _core, stream_fn
from velo.errors import PoolError, StreamBusy, WorkerDied

counting = functions.numbered.options(mode="process", workers=2, timeout=20)
pids = functions.pids.options(mode="process", workers=2, timeout=20)

# A program that does as it is told, in the same function as the tests.
PROGRAM = """
    import asyncio, json, os, sys
    sys.path.insert(0, {folder!r})
    import functions

    fn = functions.numbered.options(mode="process", workers=2, timeout=20)
    slow = functions.marks_slowly.options(mode="process", workers=2, timeout=20)

    def say(*what):
        print(json.dumps(what), flush=True)

    async def main():
        loop = asyncio.get_running_loop()
        stream = None
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            word, *rest = json.loads(line)
            if word == "attach":
                stream = await fn.open(key=rest[0])
                say("attached")
            elif word == "attach slow":
                stream = await slow.open(key=rest[0])
                say("attached")
            elif word == "ask":
                await stream.send(rest[0])
                say(*await stream.recv())
            elif word == "send":
                await stream.send_batch(rest)
                say("sent")
            elif word == "detach":
                await stream.aclose()
                say("detached")
            elif word == "many":
                key, times, name = rest
                for _ in range(times):
                    async with fn.open(key=key) as stream:
                        await stream.send(name)
                        count, got = await stream.recv()
                        assert got == name
                say("done")

    asyncio.run(main())
"""


class Program:
    """Another program, and what it says."""

    def __init__(self, tmp_path):
        text = PROGRAM.format(folder=os.path.dirname(functions.__file__))
        self.process = start_script(write_script(tmp_path, text), stdin=-1)

    def tell(self, *order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)

    async def heard(self):
        return await asyncio.to_thread(self.hear)

    def do(self, *order):
        self.tell(*order)
        return self.hear()

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def end(self):
        _, errors = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 0, errors


def test_two_programs_in_turn(tmp_path, daemon):
    one, other = Program(tmp_path), Program(tmp_path)
    for number, program in enumerate([one, other, other, one], 1):
        assert program.do("attach", "user-42") == ["attached"]
        assert program.do("ask", "x") == [number, "x"]
        assert program.do("detach") == ["detached"]
    one.end()
    assert other.do("attach", "user-42") == ["attached"]
    assert other.do("ask", "x") == [5, "x"], "it outlives the one who has opened it"
    other.end()


def test_programs_at_once_have_their_turns(tmp_path, daemon):
    """Nothing is lost or doubled, and nobody is left behind."""
    programs = [Program(tmp_path) for _ in range(3)]
    for number, program in enumerate(programs):
        program.tell("many", "user-42", 100, f"program {number}")
    for program in programs:
        assert program.hear() == ["done"]
    assert programs[0].do("attach", "user-42") == ["attached"]
    assert programs[0].do("ask", "last") == [301, "last"]
    for program in programs:
        program.end()


def in_line(daemon, count):
    """Wait until so many stand in line."""
    until_sync(lambda: daemon.status()["waiting"] == count, describe=daemon.status)


async def test_the_line_goes_by_who_came_first_whichever_process_it_is(tmp_path, daemon):
    one, other = Program(tmp_path), Program(tmp_path)
    order = []

    async def theirs(name, program):
        await program.heard()
        order.append(name)

    async def mine(name):
        async with counting.open(key="k") as stream:
            order.append(name)
            await stream.send(name)
            assert (await stream.recv())[1] == name

    for program in (one, other):  # they are connected
        program.do("attach", "another key")
        program.do("detach")
    async with counting.open(key="k"):
        waiting = []
        for number, name in enumerate(["one", "me", "other", "me again"], 1):
            if name.startswith("me"):
                turn = mine(name)
            else:
                program = one if name == "one" else other
                program.tell("attach", "k")
                turn = theirs(name, program)
            waiting.append(asyncio.create_task(turn))
            await asyncio.to_thread(in_line, daemon, number)
        assert order == []
    async with asyncio.timeout(HANG):
        await waiting[0]
        assert one.do("detach") == ["detached"]
        await waiting[1]
        await waiting[2]
        assert other.do("detach") == ["detached"]
        await waiting[3]
    assert order == ["one", "me", "other", "me again"]
    one.end()
    other.end()


async def test_who_does_not_want_to_wait_is_told(tmp_path, daemon):
    other = Program(tmp_path)
    other.do("attach", "k")
    with pytest.raises(StreamBusy, match="key `k` of `numbered` has an attachment"):
        await counting.options(overflow="error").open(key="k")
    other.do("detach")
    assert await ask(counting.options(overflow="error"), "k", "a") == (1, "a")
    other.end()


async def test_impatient_ones_never_stand_in_their_own_way(daemon):
    """What is detached can be attached at once, whoever is heard first."""
    impatient = counting.options(overflow="error")
    for number in range(1, 200):
        assert await ask(impatient, "k", "a") == (number, "a")


def test_a_client_that_is_killed_gives_back_what_it_is_attached_to(tmp_path, daemon):
    """Also what it had sent is handled."""
    victim, other = Program(tmp_path), Program(tmp_path)
    other.do("attach", "another key")
    other.do("detach")
    victim.do("attach", "k")
    assert victim.do("ask", "a") == [1, "a"]
    victim.do("send", *range(50))
    other.tell("attach", "k")
    victim.kill()
    assert other.hear() == ["attached"]
    assert other.do("ask", "b") == [52, "b"]
    other.end()


def test_what_a_killed_client_has_sent_is_handled_first(tmp_path, daemon):
    victim, other = Program(tmp_path), Program(tmp_path)
    victim.do("attach slow", "k")
    marks = str(tmp_path / "marks")
    victim.do("send", *[marks] * 20)
    victim.kill()
    assert other.do("attach slow", "k") == ["attached"]
    assert functions.marks(marks) == "x" * 20
    other.end()


def test_a_client_that_is_killed_in_line_is_passed_over(tmp_path, daemon):
    one, victim, other = (Program(tmp_path) for _ in range(3))
    one.do("attach", "k")
    for program in (victim, other):
        program.do("attach", "another key")
        program.do("detach")
    victim.tell("attach", "k")
    in_line(daemon, 1)
    other.tell("attach", "k")
    in_line(daemon, 2)
    victim.kill()
    one.do("detach")
    assert other.hear() == ["attached"]
    assert other.do("ask", "a") == [1, "a"]
    one.end()
    other.end()


async def test_a_storm_of_kills_leaves_the_key_usable(tmp_path, daemon):
    for round_ in range(5):
        victims = [Program(tmp_path) for _ in range(2)]
        for victim in victims:
            victim.tell("many", "k", 100_000, "victim")
        before, _ = await ask(counting, "k", "me")
        await asyncio.sleep(0.05 * round_)
        for victim in victims:
            victim.kill()
        async with asyncio.timeout(HANG):
            after, got = await ask(counting, "k", "me")
        assert got == "me"
        assert after > before


async def test_a_worker_that_is_killed(daemon):
    """Who is attached is told, who waits begins anew, and so does the next one."""
    async with pids.open(key="k") as stream:
        await stream.send(0)
        worker = await stream.recv()
        waiting = [asyncio.create_task(ask(pids, "k", 0)) for _ in range(2)]
        await asyncio.to_thread(in_line, daemon, 2)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=str(worker)):
            await asyncio.wait_for(stream.recv(), HANG)
    first, second = await asyncio.wait_for(asyncio.gather(*waiting), HANG)
    assert first == second != worker
    assert alive(first)
    os.kill(first, signal.SIGKILL)  # while it is detached
    until_sync(lambda: first not in [w["pid"] for w in daemon.status()["workers"]])
    assert await asyncio.wait_for(ask(pids, "k", 0), HANG) not in (worker, first)


async def test_restart_lets_the_attached_finish_and_ends_the_detached(daemon, tmp_path):
    ends = functions.marks_its_end.options(mode="process", workers=1)
    async with ends.open(key="detached") as stream:
        await stream.send(str(tmp_path / "detached"))
    async with pids.options(timeout=None).open(key="attached") as stream:
        await stream.send(0)
        old = await stream.recv()
        daemon.restart()
        await until(lambda: functions.marks(tmp_path / "detached") == "x")
        waiting = asyncio.create_task(ask(pids, "attached", 0))
        for _ in range(100):
            await stream.send(0)
            assert await stream.recv() == old
        assert not waiting.done()
    new = await asyncio.wait_for(waiting, HANG)
    assert new != old
    assert await ask(pids, "attached", 0) == new
    await until(lambda: not alive(old))
    async with ends.open(key="detached") as stream:
        await stream.send(str(tmp_path / "detached"))
        assert await stream.recv() == 1


async def test_drain_ends_what_is_detached(daemon, tmp_path):
    ends = functions.marks_its_end.options(mode="process", workers=1)
    async with ends.open(key="detached") as stream:
        await stream.send(str(tmp_path / "detached"))
    from standalone import ask as order

    order(daemon.path, lambda line: line.drain(), _core.Report.Done)
    with pytest.raises(PoolError, match="draining"):
        await ends.open(key="detached")
    await until(lambda: functions.marks(tmp_path / "detached") == "x")
    await asyncio.to_thread(daemon.process.wait, 20)


async def test_a_supervisor_that_is_killed_takes_its_keys_with_it(daemon_at, tmp_path):
    """Who is attached goes on, and ends it by leaving; who waits begins anew at the next one."""
    daemon = daemon_at("--workers", 1, "--idle-timeout", 1)
    ends = functions.marks_its_end.options(mode="process", workers=1)
    async with ends.open(key="detached") as stream:
        await stream.send(str(tmp_path / "detached"))
    async with ends.open(key="attached") as stream:
        await stream.send(str(tmp_path / "attached"))
        assert await stream.recv() == 1
        daemon.kill()
        await until(lambda: functions.marks(tmp_path / "detached") == "x")
        await stream.send(str(tmp_path / "attached"))
        assert await stream.recv() == 2
        assert functions.marks(tmp_path / "attached") == ""
        with pytest.raises(PoolError, match="velo supervisor start"):
            await ends.open(key="attached")
        daemon_at("--workers", 1)
        async with ends.open(key="attached") as other:
            await other.send(str(tmp_path / "other"))
            assert await other.recv() == 1
    await until(lambda: functions.marks(tmp_path / "attached") == "x")


async def test_waiting_goes_on_at_the_next_supervisor(daemon_at):
    daemon = daemon_at("--workers", 1, "--idle-timeout", 1)
    async with counting.open(key="k") as stream:
        await stream.send("a")
        await stream.recv()
        waiting = asyncio.create_task(ask(counting, "k", "b"))
        await asyncio.to_thread(in_line, daemon, 1)
        assert not waiting.done()
        daemon.kill()
        with pytest.raises(PoolError, match="velo supervisor start"):
            await asyncio.wait_for(waiting, HANG)


async def test_places_come_back_when_the_supervisor_is_gone(daemon_at):
    limited = counting.options(max_concurrent=1)
    daemon = daemon_at("--workers", 1, "--idle-timeout", 1)
    assert await ask(limited, "k", "a") == (1, "a")
    daemon.kill()
    daemon_at("--workers", 1)
    async with asyncio.timeout(HANG):
        assert await ask(limited, "other", "a") == (1, "a")


async def test_a_grant_of_a_supervisor_that_is_gone_is_not_one_of_the_next(daemon_at):
    """The key has one attachment, though its program still waited for a permit meanwhile."""
    limited = counting.options(max_concurrent=1, workers=1)
    daemon = daemon_at("--workers", 1, "--idle-timeout", 1)
    async with asyncio.timeout(HANG):
        async with limited.open() as stream:
            await stream.send("a")
            await stream.recv()
            attaching = asyncio.ensure_future(limited.open(key="k"))
            await until(lambda: limited._spec.limiter.contended)
            [old] = [worker["pid"] for worker in daemon.status()["workers"]]
            daemon.kill()
            daemon_at("--workers", 1)
            while await pids.run([0]) == [old]:
                pass  # this program has no link of the next one yet
        async with await attaching as stream:
            with pytest.raises(StreamBusy):
                await counting.options(overflow="error").open(key="k")
            await stream.send("b")
            assert await stream.recv() == (1, "b")


async def test_many_detached_keys_cost_memory_only(daemon_at):
    """Nothing is periodic, whatever their number, and they all can be found."""
    daemon = daemon_at("--workers", 1)
    total = 1000
    fn = counting.options(timeout=None)
    keys = iter(range(total))

    async def some():
        for key in keys:
            assert await ask(fn, key, "a") == (1, "a")

    await asyncio.gather(*[some() for _ in range(8)])
    [worker] = [psutil.Process(w["pid"]) for w in daemon.status()["workers"]]
    await fall_silent([worker.pid, daemon.pid])
    memory = worker.memory_info().rss
    for key in range(total):
        assert await ask(fn, key, "b") == (2, "b")
    assert worker.memory_info().rss - memory < 4 << 20, "attaching leaves nothing behind"
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) < 64
    for key in range(total):
        async with fn.open(key=key) as stream:
            await stream.end()


async def test_a_cancelled_wait_leaves_the_line_of_all(tmp_path, daemon):
    other = Program(tmp_path)
    other.do("attach", "k")
    task = asyncio.create_task(ask(counting, "k", "a"))
    await asyncio.to_thread(in_line, daemon, 1)
    await cancel(task)
    other.do("detach")
    assert other.do("attach", "k") == ["attached"]
    other.do("detach")
    other.end()


async def test_storm_of_cancelled_opens_and_other_clients(tmp_path, daemon):
    other = Program(tmp_path)
    other.tell("many", "k", 200, "other")
    for number in range(100):
        task = asyncio.create_task(ask(counting, "k", number))
        await asyncio.sleep(0.0005 * (number % 9))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert await other.heard() == ["done"]
    async with asyncio.timeout(HANG):
        assert (await ask(counting, "k", "last"))[1] == "last"
    other.end()


def test_a_function_of_the_script_itself(tmp_path, daemon):
    """By value: the same script means the same function."""
    script = """
        import asyncio
        from velo import stream_fn

        @stream_fn(mode="process", workers=1)
        async def add(events):
            total = 0
            async for event in events:
                total += event
                yield total

        async def main():
            async with add.open(key="k") as stream:
                await stream.send(5)
                print(await stream.recv())

        asyncio.run(main())
    """
    for expected in ("5\n", "10\n", "15\n"):
        code, output, errors = run_script(tmp_path, script)
        assert (code, output) == (0, expected), errors


async def test_keys_are_not_in_what_anybody_can_read(daemon):
    secret = "number-of-a-card"
    assert await ask(counting, secret, "a") == (1, "a")
    assert secret not in json.dumps(daemon.status())
    assert secret not in daemon.said()


@stream_fn(mode="process", workers=1, timeout=20)
async def logs(events):
    import logging

    async for event in events:
        logging.getLogger("kept").warning("event %s", event)
        yield event


async def test_what_it_logs_goes_to_whoever_is_attached(tmp_path, daemon, caplog):
    for number in range(3):
        assert await ask(logs, "k", number) == number
    await until(lambda: len([r for r in caplog.records if r.name == "kept"]) == 3)
