"""`velo run --checkpoint`: the same command goes on where it stopped or died."""

import json
import os
import signal
from collections import defaultdict

import pytest

from helpers import HANG, until_sync

COUNT = 2000

FUNCTIONS = """
import time
from velo import stream_fn

@stream_fn
async def sums(events, state):
    async for event in events:
        state["total"] = state.get("total", 0) + event["v"]
        state["count"] = state.get("count", 0) + 1
        time.sleep(0.0002)  # stands for work: there is time to kill it
        yield [event["k"], state["count"], state["total"]]

@stream_fn
async def without(events):
    async for event in events:
        yield event

@stream_fn
async def ends(events, state):
    async for event in events:
        state["count"] = state.get("count", 0) + 1
    yield [event["k"], state["count"]]
"""
RUN = ("run", "sums.py:sums", "-k", "k", "-o", "out.ndjson", "--checkpoint", "kept")


@pytest.fixture
def files(velo):
    velo.file("sums.py", FUNCTIONS)
    velo.file("in.ndjson", "".join(line(n) for n in range(COUNT)))
    return velo


def line(n):
    return json.dumps({"k": f"key-{n % 7}", "v": n}) + "\n"


def results(velo, name="out.ndjson"):
    """Results by key, in order."""
    found = defaultdict(list)
    path = velo.folder / name
    for text in path.read_text().splitlines() if path.exists() else ():
        made = json.loads(text)
        found[made["key"]].append(made["result"])
    return dict(found)


def written(velo):
    """How many results the output has, while another process may be writing one."""
    path = velo.folder / "out.ndjson"
    return path.read_text().count("\n") if path.exists() else 0


def expected(count=COUNT):
    found = defaultdict(list)
    for n in range(count):
        before = found[f"key-{n % 7}"][-1][1:] if found[f"key-{n % 7}"] else (0, 0)
        found[f"key-{n % 7}"].append([f"key-{n % 7}", before[0] + 1, before[1] + n])
    return dict(found)


def size(velo, name="out.ndjson"):
    path = velo.folder / name
    return path.stat().st_size if path.exists() else 0


def start_and_end(velo, number, *arguments):
    """Starts the command, and sends it a signal once it has written something more."""
    before = size(velo)
    process = velo.start(*RUN, *arguments, "--checkpoint-every", "0.05")
    until_sync(lambda: size(velo) > before or process.poll() is not None)
    process.send_signal(number)
    _, err = process.communicate(timeout=HANG)
    return process.returncode, err.decode()


def test_after_kill_9_the_same_command_goes_on(files, mode):
    for _ in range(3):
        start_and_end(files, signal.SIGKILL, "-i", "in.ndjson", "--mode", mode)
    done = files(*RUN, "-i", "in.ndjson", "--mode", mode)
    assert done.code == 0, done.err
    assert results(files) == expected()


def test_after_sigterm_the_same_command_goes_on(files, mode):
    code, err = start_and_end(files, signal.SIGTERM, "-i", "in.ndjson", "--mode", mode)
    assert code in (0, 128 + signal.SIGTERM), err
    assert "epoch " in err
    done = files(*RUN, "-i", "in.ndjson", "--mode", mode)
    assert done.code == 0, done.err
    assert results(files) == expected()


def test_what_is_done_is_not_done_again(files):
    assert files(*RUN, "-i", "in.ndjson").code == 0
    again = files(*RUN, "-i", "in.ndjson")
    assert again.code == 0, again.err
    assert results(files) == expected()


def test_one_stream_without_a_key(files):
    files.file("one.ndjson", "".join(line(7 * n) for n in range(COUNT // 4)))
    command = (
        "run",
        "sums.py:sums",
        "-i",
        "one.ndjson",
        "-o",
        "out.ndjson",
        "--checkpoint",
        "kept",
    )
    process = files.start(*command, "--checkpoint-every", "0.05")
    until_sync(lambda: size(files) or process.poll() is not None)
    process.kill()
    process.communicate(timeout=HANG)
    assert files(*command).code == 0
    found = [json.loads(text)[1] for text in (files.folder / "out.ndjson").read_text().splitlines()]
    assert found == list(range(1, COUNT // 4 + 1))


def test_several_files_and_new_ones(files):
    files.file("part-2.ndjson", "".join(line(n) for n in range(300)))
    run = (*RUN, "-i", "part-*.ndjson", "--unload", "--max-concurrent", "3")
    assert files(*run).code == 0
    before = results(files)
    # Another file comes to lie before the one that was read, and that one has grown.
    files.file("part-1.ndjson", "".join(line(n) for n in range(50)))
    with open(files.folder / "part-2.ndjson", "a") as file:
        file.writelines(line(n) for n in range(300, 350))
    done = files(*run)
    assert done.code == 0, done.err
    after = results(files)
    assert sum(map(len, after.values())) == 400
    assert {key: found[: len(before[key])] for key, found in after.items()} == before


def test_bad_lines_and_csv(files):
    rows = "".join(f"key-{n % 3},{n}\n" if n % 5 else "key-1\n" for n in range(60))
    files.file("in.csv", f"k,v\n{rows}")
    assert files(*RUN, "-i", "in.csv").code == 0
    before = results(files)
    assert sum(map(len, before.values())) == 48
    assert files(*RUN, "-i", "in.csv").code == 0
    assert results(files) == before


def test_keys_are_told_apart_as_they_are_written(files):
    files.file(
        "in.ndjson", "".join(f'{{"k": {k}, "v": 1}}\n' for k in ("3.1", "3.10", "true", "1"))
    )
    run = (*RUN, "-i", "in.ndjson", "--unload", "--max-concurrent", "1")
    assert files(*run).code == 0
    assert files(*run).code == 0
    lines = (files.folder / "out.ndjson").read_text().splitlines()
    keys = [text.split(":")[1].split(",")[0] for text in lines]
    assert sorted(keys) == ["1", "3.1", "3.10", "true"]


def test_keys_end_at_the_end_of_the_input(files):
    run = ("run", "sums.py:ends", "-k", "k", "-o", "out.ndjson", "--checkpoint", "kept")
    assert files(*run, "-i", "in.ndjson").code == 0
    found = results(files)
    assert sum(count for ((_, count),) in found.values()) == COUNT


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-i", "in.ndjson", "--resume"), "drop one of them"),
        (("-i", "-"), "standard input cannot be read again"),
        (("-i", "pipe", "--format", "ndjson"), "`pipe` cannot be read again"),
        (("-i", "in.ndjson", "--follow"), "follow=true"),
    ],
)
def test_inputs_that_cannot_go_back_are_refused(files, arguments, why):
    os.mkfifo(files.folder / "pipe")
    done = files(*RUN, *arguments)
    assert done.code == 2, done.err
    assert why in done.err
    assert not (files.folder / "kept").exists()


def test_options_of_a_checkpoint_need_one(files):
    done = files("run", "sums.py:sums", "-i", "in.ndjson", "--ttl", "5")
    assert done.code == 2
    assert "need `--checkpoint`" in done.err


def test_a_function_without_state_is_refused(files):
    done = files("run", "sums.py:without", "-i", "in.ndjson", "--checkpoint", "kept")
    assert done.code == 2
    assert done.err.startswith("velo: `without` has no `state`")
    assert not (files.folder / "kept").exists()


def test_a_second_run_is_refused_with_the_pid_of_the_first(files):
    url = f"file://{files.folder}/in.ndjson?follow=true"
    process = files.start(*RUN, "-i", url, "--checkpoint-every", "0.05")
    until_sync(lambda: size(files) or process.poll() is not None)
    done = files(*RUN, "-i", url)
    assert done.code == 1
    assert f"in use by process {process.pid}" in done.err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG)
    assert files(*RUN, "-i", "in.ndjson").code == 0


def test_a_file_that_was_cut_is_named(files):
    assert files(*RUN, "-i", "in.ndjson").code == 0
    files.file("in.ndjson", line(0))
    done = files(*RUN, "-i", "in.ndjson")
    assert done.code == 65, done.err
    assert "`in.ndjson` has 1 events, and 2,000 of it were handled before" in done.err


def test_a_file_that_grows_is_followed_by_its_url(files):
    run = (*RUN, "-i", f"file://{files.folder}/in.ndjson?follow=true")
    count = COUNT
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        with open(files.folder / "in.ndjson", "a") as file:
            file.writelines(line(n) for n in range(count, count + 100))
        count += 100
        process = files.start(*run, "--checkpoint-every", "0.05")
        until_sync(lambda count=count: written(files) >= count)
        process.send_signal(number)
        process.communicate(timeout=HANG)
    assert results(files) == expected(count)


def test_standard_output_gets_results_as_they_come(files):
    done = files("run", "sums.py:sums", "-k", "k", "-i", "in.ndjson", "--checkpoint", "kept")
    assert done.code == 0
    assert done.by_key == expected()
