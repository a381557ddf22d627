"""`velo run` and whoever reads its output: nothing waits in vain, and signals always work."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess

import pytest

from helpers import HANG, NO_SLOW_STEPS, until_sync, write_script

LINES = b'{"k":1,"text":"some text that makes the line longer"}\n' * 40_000
KEYED = pytest.mark.parametrize("keyed", [(), ("-k", "k")], ids=["one", "keyed"])

LIMITED = """
    from velo import stream_fn

    @stream_fn(mode="process", workers=1, max_bytes=4096)
    async def sizes(events):
        async for event in events:
            yield len(event["text"])

    @stream_fn(mode="process", workers=1, recover="replay", journal_limit=4096)
    async def totals(events):
        total = 0
        async for event in events:
            total += event["n"]
            yield total
"""


@KEYED
def test_an_event_that_is_too_large_ends_the_run(velo, keyed):
    write_script(velo.folder, LIMITED, "limited.py")
    events = [{"k": 1, "text": "x" * size} for size in (10, 5000, 20)]
    velo.file("in.ndjson", "".join(json.dumps(event) + "\n" for event in events))
    done = velo("run", "limited.py:sizes", "-i", "in.ndjson", *keyed)
    assert done.code == 1
    assert "`max_bytes`" in done.err
    assert "in.ndjson:2" in done.err
    assert "failed: " in done.err


@KEYED
def test_a_journal_that_is_full_ends_the_run(velo, keyed):
    write_script(velo.folder, LIMITED, "limited.py")
    velo.file("in.ndjson", "".join(f'{{"k":1,"n":{n}}}\n' for n in range(5000)))
    done = velo("run", "limited.py:totals", "-i", "in.ndjson", *keyed)
    assert done.code == 1
    assert "journal_limit" in done.err


def ends(kind):
    """What a program writes to, and what reads that: (descriptor, descriptor)."""
    if kind == "socket":
        here, there = socket.socketpair()
        # What it takes must be less than what a run writes at a time.
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return there.detach(), here.detach()
    if kind == "terminal":
        screen, side = pty.openpty()
        return side, screen
    read, write = os.pipe()
    if kind == "pipe that does not block":
        os.set_blocking(write, False)
    return write, read


KINDS = ["pipe", "pipe that does not block", "socket", "terminal"]


@pytest.mark.parametrize("kind", KINDS)
@KEYED
def test_signals_end_it_when_nobody_takes_the_output(velo, mode, keyed, kind):
    write, read = ends(kind)
    velo.file("in.ndjson", LINES)
    process = velo.start(
        *("run", "fns:echo", "-i", "in.ndjson", "--mode", mode, "--drain", "0.2", *keyed),
        stdout=write,
    )
    try:
        # It will be held up: there is much more than that takes.
        until_sync(lambda: not select.select([], [write], [], 0)[1])
        process.send_signal(signal.SIGINT)
        assert b"stopping" in process.stderr.readline()
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 130
        assert b"takes no more: " in err
        assert b"Traceback" not in err
    finally:
        os.close(write)
        os.close(read)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_reader_gets_all_of_it(velo, kind):
    write, read = ends(kind)
    velo.file("in.ndjson", LINES)
    process = velo.start("run", "fns:echo", "-i", "in.ndjson", stdout=write)
    os.close(write)
    got = b""
    while True:
        try:
            data = os.read(read, 4096)
        except OSError:  # how a terminal says that it is over
            break
        if not data:
            break
        got += data
    os.close(read)
    process.communicate(timeout=HANG)
    assert process.returncode == 0
    assert got.replace(b"\r\n", b"\n") == LINES


STUCK = """
    import re, time
    from velo import stream_fn

    @stream_fn
    async def asleep(events):
        async for event in events:
            print("began", flush=True)
            time.sleep(1000)
            yield event

    @stream_fn
    async def busy(events):
        async for event in events:
            print("began", flush=True)
            while True:
                pass
            yield event

    @stream_fn
    async def matching(events):
        async for event in events:
            print("began", flush=True)
            re.fullmatch("(a|a)+b", "a" * 60)  # keeps the interpreter's lock for ever
            yield event
"""


@pytest.mark.parametrize("name", ["asleep", "busy", "matching"])
def test_a_second_signal_ends_a_function_that_holds_the_event_loop(velo, name):
    write_script(velo.folder, STUCK, "stuck.py")
    velo.file("in.ndjson", "1\n")
    process = velo.start("run", f"stuck.py:{name}", "-i", "in.ndjson", "-o", "out.ndjson")
    assert process.stdout.readline() == b"began\n"
    process.send_signal(signal.SIGINT)
    # Another one at the same moment would be the same signal, as `timeout` sends it.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)

    # The command may have had no turn until then, and take both for one.
    def ends():
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        return process.returncode is not None

    until_sync(ends)
    process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGTERM


def test_messages_that_nobody_reads_hold_up_nothing(velo):
    velo.file("in.ndjson", "x\n" * 60_000 + "1\n")
    read, write = os.pipe()
    process = velo.start("run", "fns:echo", "-i", "in.ndjson", "--reports", "100000", stderr=write)
    os.close(write)
    out, _ = process.communicate(timeout=HANG)
    os.close(read)
    assert (process.returncode, out) == (0, b"1\n")


@pytest.mark.parametrize("follow", [(), ("--follow",)], ids=["all", "follow"])
def test_head_ends_it_quietly(velo, mode, follow, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", NO_SLOW_STEPS)
    velo.file("in.ndjson", LINES)
    process = velo.start("run", "fns:echo", "-i", "in.ndjson", "--mode", mode, *follow)
    assert (
        process.stdout.readline() + process.stdout.readline() == LINES[: 2 * LINES.index(b"\n") + 2]
    )
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGPIPE
    assert err.startswith(b"stopped: ")
    assert err.count(b"\n") == 1


def test_a_reader_that_leaves_is_noticed_while_nothing_is_written(velo):
    process = velo.start("run", "fns:echo", "-i", "-")
    process.stdin.write(b"1\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"1\n"
    process.stdout.close()
    process.stdout = None
    assert process.wait(timeout=HANG) == 128 + signal.SIGPIPE


def test_what_ends_the_run_names_the_line(velo, mode):
    lines = [f'{{"k":{n % 3},"v":{n + 1}}}\n' for n in range(40)]
    lines[31] = '{"k":1,"v":0}\n'
    velo.file("in.ndjson", "x\n\n" + "".join(lines))
    done = velo("run", "fns:inverse", "-i", "in.ndjson", "--mode", mode)
    assert done.code == 1
    assert "`inverse` raised ZeroDivisionError at event 32, in.ndjson:34:" in done.err
    done = velo("run", "fns:inverse", "-i", "in.ndjson", "-k", "k", "--mode", mode)
    assert "at event 11, in.ndjson:34:" in done.err
    assert "in the stream of key 1" in done.err


def test_events_that_were_read_and_not_worked_on_are_told(velo):
    velo.file("in.ndjson", '{"v":1}\n' * 5000)
    done = velo("run", "fns:first", "-i", "in.ndjson")
    assert done.code == 0
    assert done.err.startswith("1 event in ")
    assert "more read and not worked on" in done.err


@pytest.mark.parametrize("name", ["in.ndjson", "in.csv", "in.json"])
def test_an_input_of_bad_lines_alone_fails(velo, name):
    velo.file(name, "a,b\n1\n2\n" if name.endswith("csv") else "x\ny\n")
    velo.file("good.ndjson", "7\n")
    done = velo("run", "fns:echo", "-i", name, "-i", "good.ndjson")
    assert (done.code, done.results) == (1, [7])
    assert f"`{name}` gave no event: all of its 2 lines were skipped" in done.err
    assert velo("run", "fns:echo", "-i", "good.ndjson", "-k", "k").code == 1


def test_standard_input_that_is_csv(velo, mode):
    hint = "(standard input is NDJSON unless `--format csv`, say, is given); skipped"
    call = ("run", "fns:sums", "-i", "-", "-k", "k", "--mode", mode)
    done = velo(*call, stdin=b"k,v\n1,2\n")
    assert done.code == 1
    assert done.err.count(hint) == 1
    assert hint in velo(*call, stdin=b"k,v").err
    assert hint not in velo(*call, "--format", "ndjson", stdin=b"k,v\n1,2\n").err
    assert hint not in velo(*call, stdin=b'{"k":1,"v":2}\nx\n').err


def test_a_fifo_that_trickles(velo, mode):
    fifo = velo.folder / "in.csv"
    os.mkfifo(fifo)
    process = velo.start("run", "fns:sums", "-i", "in.csv", "-k", "k", "--mode", mode)
    with open(fifo, "w") as pipe:
        pipe.write("k,v\n")
        for number, total in ((1, 1), (2, 3), (3, 6)):
            pipe.write(f"1.0,{number}\n")
            pipe.flush()
            assert json.loads(process.stdout.readline()) == {"key": 1.0, "result": total}
    process.communicate(timeout=HANG)
    assert process.returncode == 0


@pytest.mark.parametrize("closed", [0, 1, 2, (0, 1, 2)])
def test_closed_standard_streams(velo, mode, closed):
    which = closed if isinstance(closed, tuple) else (closed,)
    velo.file("in.ndjson", '{"n":1}\n')
    redirected = " ".join(f"{fd}>&-" if fd else "0<&-" for fd in which)
    command = f'"$@" {redirected}'

    def run(*args):
        return subprocess.run(
            ["sh", "-c", command, "-", *velo.command("run", "fns:echo", "--mode", mode, *args)],
            cwd=velo.folder,
            env=velo.environment,
            capture_output=True,
            text=True,
            timeout=HANG,
        )

    done = run("-i", "in.ndjson", "-o", "out.ndjson")
    assert done.returncode == 0, done.stderr
    assert (velo.folder / "out.ndjson").read_text() == '{"n":1}\n'
    if 0 in which:
        done = run("-i", "-", "-o", "out.ndjson")
        assert done.returncode == 1
        assert 2 in which or "standard input is closed" in done.stderr
    if 1 in which:
        done = run("-i", "in.ndjson")
        assert done.returncode == 1
        assert 2 in which or "standard output is closed" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("checkpoint", "inspect", "--help"),
        ("checkpoint",),
        (),
        ("status", "--json"),
        ("doctor",),
        ("dead-letter", "list", "bad.ndjson"),
        ("replay", "kept", "--until", "1"),
    ],
    ids=" ".join,
)
def test_the_output_of_another_command_that_nobody_reads(velo, command, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", NO_SLOW_STEPS)
    velo.file("bad.ndjson", '{"function":"f","error":"e"}\n')
    velo.file("in.ndjson", "1\n")
    if "replay" in command:
        assert velo("record", "fns:echo", "-i", "in.ndjson", "--record", "kept").code == 0
    read, write = os.pipe()
    os.close(read)
    process = velo.start(*command, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGPIPE, err
    assert err == b""


def test_a_signal_after_the_function_has_thrown_away_its_threads(velo):
    """What asyncio waits for at its end may take for ever; one signal is enough all the same."""
    velo.file("in.ndjson", "1\n")
    velo.file(
        "threads.py",
        "import asyncio, time\n"
        "from velo import stream_fn\n"
        "@stream_fn\n"
        "async def waits(events):\n"
        "    async for event in events:\n"
        "        yield event\n"
        "        await asyncio.to_thread(time.sleep, 1000)\n",
    )
    process = velo.start("run", "threads.py:waits", "-i", "in.ndjson", "--drain", "0.1")
    assert process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGTERM)
    assert b"stopping" in process.stderr.readline()
    until_sync(lambda: b"stopped" in process.stderr.readline())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG)
    assert process.returncode in (143, -signal.SIGTERM)
