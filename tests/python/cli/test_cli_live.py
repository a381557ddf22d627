"""`velo run` while it runs: slow pipes, Ctrl-C, and the live line of a terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest

from helpers import HANG, environment, until_sync, write_script


def send(process, *events):
    for event in events:
        process.stdin.write(json.dumps(event).encode() + b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("keyed", [(), ("-k", "k")], ids=["one", "keyed"])
def test_results_come_while_the_input_is_slow(velo, mode, keyed):
    process = velo.start("run", "fns:sums", "-i", "-", "--mode", mode, *keyed)
    for number in range(3):
        send(process, {"k": 1, "v": number})
        line = json.loads(process.stdout.readline())  # it comes before the next event is sent
        assert (line["result"] if keyed else line) == [0, 1, 3][number]
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0
    assert b'{"total":3}' in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_done(velo, mode, number):
    command = ("run", "fns:sums", "-i", "-", "-k", "k", "--mode", mode, "-o", "out.ndjson")
    process = velo.start(*command, "--drain", HANG)
    out = velo.folder / "out.ndjson"
    send(process, {"k": 1, "v": 1}, {"k": 2, "v": 5}, {"k": 1, "v": 2})
    until_sync(lambda: out.exists() and len(out.read_bytes().splitlines()) == 3)
    # As from a terminal: to the whole group, workers included.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    process.wait(timeout=HANG)
    err = process.stderr.read().decode()
    process.communicate()
    assert process.returncode == 128 + number
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["result"] for line in lines if line["key"] == 1] == [1, 3, {"total": 3}]
    assert "stopping: " in err
    assert "stopped: 3 events in " in err
    assert "Traceback" not in err


PACED = """
    import time
    from velo import stream_fn

    @stream_fn
    async def paced(events):
        async for event in events:
            time.sleep(0.0005)  # stands for work, so that some is waiting when the signal comes
            yield event["v"]
"""


@pytest.mark.parametrize("keyed", [(), ("-k", "k")], ids=["one", "keyed"])
def test_what_was_read_from_a_pipe_is_worked_on(velo, mode, keyed):
    """Nobody else could get it any more; what was not read is still in the pipe."""
    write_script(velo.folder, PACED, "paced.py")
    events = [json.dumps({"k": 1, "v": number}).ljust(63) + "\n" for number in range(4096)]
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096 * 64)  # nothing may be read once it stops
    process = velo.start(
        "run", "paced.py:paced", "-i", "-", "--drain", HANG, "--mode", mode, *keyed, stdin=read
    )
    os.write(write, "".join(events[:1024]).encode())
    early = os.read(process.stdout.fileno(), 65536)
    os.write(write, "".join(events[1024:2048]).encode())
    process.send_signal(signal.SIGTERM)
    assert b"stopping" in process.stderr.readline()
    os.write(write, "".join(events[2048:3072]).encode())
    out, err = process.communicate(timeout=HANG)
    os.close(write)
    with open(read) as pipe:
        left = pipe.readlines()
    worked = (early + out).count(b"\n")
    assert process.returncode == 143
    assert f"stopped: {worked:,} events" in err.decode()
    assert left == events[worked:3072]
    assert worked in (1024, 2048)


def test_streams_are_given_time_to_finish(velo):
    process = blocked(velo, "--drain", HANG)
    process.send_signal(signal.SIGTERM)
    while b"stopping" not in (line := process.stderr.readline()):
        assert line
    (velo.folder / "began.end").touch()
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 143
    assert out.count(b"\n") == 4


BLOCKING = """
    import os, time
    from velo import stream_fn

    @stream_fn(mode="process", workers=2)
    async def blocking(events):
        async for event in events:
            yield os.getpid()
            with open(event["began"], "a") as file:
                file.write("x")
            while not os.path.exists(event["gate"]):
                time.sleep(0.01)  # stands for computing: the worker's event loop has no turn
"""


def blocked(velo, *more):
    """A run in which both workers compute, each in one of its two streams, until the gate is there.

    Both have been through an event of every stream before, so that they are warm.
    """
    write_script(velo.folder, BLOCKING, "blocking.py")
    process = velo.start("run", "blocking.py:blocking", "-i", "-", "-k", "k", *more)
    warm, began = velo.folder / "warm", velo.folder / "began"
    send(process, *({"k": key, "began": str(warm), "gate": "/"} for key in range(4)))
    for _ in range(4):
        assert process.stdout.readline(), process.stderr.read()
    send(process, *({"k": k, "began": str(began), "gate": f"{began}.end"} for k in range(4)))
    until_sync(lambda: began.exists() and began.stat().st_size == 2)
    return process


def test_results_come_while_the_function_computes(velo):
    process = blocked(velo)
    early = b""
    while early.count(b"\n") < 2 and select.select([process.stdout], [], [], HANG)[0]:
        early += os.read(process.stdout.fileno(), 4096)
    (velo.folder / "began.end").touch()
    out, _ = process.communicate(timeout=HANG)
    assert (early + out).count(b"\n") == 4
    assert early.count(b"\n") == 2, "a result waited for what the function did after it"


def test_a_second_signal_stops_at_once(velo):
    process = blocked(velo, "--drain", 3600)  # the first signal alone would end it much later
    process.send_signal(signal.SIGINT)
    while b"stopping" not in (line := process.stderr.readline()):
        assert line
    # The time of the first signal was taken before that line. One within 50 ms would be the same.
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert re.search(rb"stopped: [4-6] events in .*, [2-4] more read and not worked on\n", err)
    assert b"Traceback" not in err


def test_one_signal_is_enough(velo):
    """A function that does not let go of its worker is given up after a while."""
    process = blocked(velo)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.count(b"\n") == 2  # what it does, and the summary


def test_a_signal_when_nobody_reads_stderr(velo, mode):
    command = ("run", "fns:sums", "-i", "-", "-k", "k", "--mode", mode)
    process = velo.start(*command, "--drain", HANG)
    send(process, {"k": 1, "v": 7})
    process.stdout.readline()
    process.stderr.close()
    process.stderr = None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert b'{"total":7}' in out


def terminal(velo, *args):
    """What `velo` writes to a terminal of 80 columns, and its exit code."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(velo.folder)
        env = environment(TERM="xterm-256color", COLUMNS="80", LINES="24")
        os.execve(sys.executable, [sys.executable, "-m", "velo", *map(str, args)], env)
    written = b""
    while True:
        try:
            data = os.read(screen, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not data:
            break
        written += data
    os.close(screen)
    return written.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_live_line(velo):
    lines = "".join(f'{{"k":{number % 100},"v":1}}\n' for number in range(60_000))
    velo.file("in.ndjson", "x\n" + lines)
    run = ("run", "fns:sums", "-i", "in.ndjson", "-k", "k", "--mode", "process", "-o", "o.ndjson")
    written, code = terminal(velo, *run)
    assert code == 0
    assert "events/s" in written
    assert "workers" in written
    assert "100 streams, 60,100 results, 1 skipped" in written
    assert "velo: in.ndjson:1: not JSON" in written
    quiet, code = terminal(velo, *run, "--no-progress")
    assert code == 0
    assert "events/s" not in quiet
    assert "100 streams, 60,100 results, 1 skipped" in quiet


def test_beside_the_live_line_a_message_stays_as_it_is(velo):
    velo.file("in.ndjson", "1\n" * 99 + "x\n")
    written, code = terminal(velo, "run", "fns:echo", "-i", "in.ndjson", "-o", "out.ndjson")
    assert code == 0
    assert "velo: in.ndjson:100: not JSON" in written  # `:100:` is a name of an emoji
