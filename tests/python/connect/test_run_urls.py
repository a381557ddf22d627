"""`velo run` with URLs: files as sources and sinks beside the files that it reads itself."""

import json
import os
import signal
import subprocess
import sys

import pytest

APP = """
from velo import stream_fn

@stream_fn
async def counts(events):
    number = 0
    async for event in events:
        if event.get("fails"):
            raise ValueError("refused")
        number += 1
        yield [object() if event.get("odd") else event["k"], number]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def velo(*args, code=0):
    run = [sys.executable, "-m", "velo", "run", "app.py:counts", *map(str, args)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, events):
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_from_url_to_url(here, mode):
    write(here / "in.ndjson", [{"k": n % 3} for n in range(300)])
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", "-o", f"file://{here}/out.ndjson",
                "--mode", mode)  # fmt: skip
    assert "300 events" in done.stderr
    by_key = {key: [n for k, n in lines(here / "out.ndjson") if k == key] for key in range(3)}
    assert all(numbers == list(range(1, 101)) for numbers in by_key.values())


def test_urls_and_files_side_by_side(here):
    write(here / "a.ndjson", [{"k": 1}] * 10)
    (here / "b.csv").write_text("k\n" + "1\n" * 5)
    velo("-i", f"file://{here}/a.ndjson", "-i", "b.csv", "-k", "k", "-o", "out.ndjson")
    written = lines(here / "out.ndjson")
    assert [line["result"][1] for line in written] == list(range(1, 16))


def test_failed_records_go_to_the_dead_letters(here):
    write(here / "in.ndjson", [{"k": 1}, {"k": 1, "fails": True}, {"x": 2}, {"k": 1}])
    with open(here / "in.ndjson", "a") as file:
        file.write("{broken\n")
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", "-o", "out.ndjson",
                "--dead-letter", "dead.ndjson")  # fmt: skip
    assert "3 dead letters" in done.stderr
    assert [line["result"] for line in lines(here / "out.ndjson")] == [[1, 1], [1, 1]]
    dead = lines(here / "dead.ndjson")
    assert {letter["error"].split(":")[0] for letter in dead} == {
        *("ValueError", "KeyError", "JSONDecodeError")
    }


@pytest.mark.parametrize("output", ["out.ndjson", "-"])
def test_a_result_without_a_form_in_json_has_no_other_written_twice(here, output):
    write(here / "in.ndjson", [{"k": n, "odd": n == 40} for n in range(80)])
    done = velo("-i", f"file://{here}/in.ndjson", "-o", output, "--dead-letter", "dead.ndjson")
    written = (here / "out.ndjson").read_text() if output != "-" else done.stdout
    numbers = [number for _, number in map(json.loads, written.splitlines())]
    assert numbers == [n for n in range(1, 81) if n != 41]
    (dead,) = lines(here / "dead.ndjson")
    assert "`object` has no form in JSON" in dead["error"]


def test_without_dead_letters_a_bad_record_is_told_and_skipped(here):
    write(here / "in.ndjson", [{"k": 1}, {"x": 2}, {"k": 1}])
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", "-o", "out.ndjson")
    assert "there is no field 'k', for the record at position" in done.stderr
    assert len(lines(here / "out.ndjson")) == 2
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", "--strict", code=1)
    assert "as `--strict` asks" in done.stderr


def test_a_failing_function_ends_the_run_and_the_record_is_named(here):
    write(here / "in.ndjson", [{"k": 7, "fails": True}])
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", code=1)
    assert "refused" in done.stderr
    assert "key 7" in done.stderr
    assert "position 24" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-i", "file:///nowhere/in.ndjson"], 66, "there is no file"),
        (["-i", "gopher://host/x"], 2, "no connector reads or writes gopher://"),
        (["-i", "file:///x?colour=red"], 2, "has no setting `colour`"),
        (["-i", "file:///x", "--resume", "-o", "o"], 2, "`--resume` is for files alone"),
        (["-i", "a.ndjson", "--group", "g"], 2, "are for URLs"),
        (["-i", "file:///x", "--record-key", "-k", "k"], 2, "takes no `--key`"),
    ],
)
def test_what_is_wrong_is_said(here, args, code, message):
    done = velo(*args, code=code)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_input_without_any_event_is_a_failure(here):
    write(here / "in.ndjson", [{"x": 2}, {"x": 3}])
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", code=1)
    assert "gave no event: all of its 2 records were skipped" in done.stderr
    velo("-i", f"file://{here}/in.ndjson", "-k", "k", "--dead-letter", "dead.ndjson")
    assert len(lines(here / "dead.ndjson")) == 2


def test_one_url_twice_is_refused(here):
    write(here / "in.ndjson", [{"k": 1}])
    url = f"file://{here}/in.ndjson"
    done = velo("-i", url, "-i", url, "-k", "k", code=1)
    assert "two inputs have a partition" in done.stderr
    assert "Traceback" not in done.stderr
    assert "raised" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no device that is full")
@pytest.mark.parametrize("option", ["-o", "--dead-letter"])
def test_a_full_disk_is_named(here, option):
    write(here / "in.ndjson", [{"k": 1, "fails": option == "--dead-letter"}])
    done = velo("-i", f"file://{here}/in.ndjson", "-k", "k", option, "file:///dev/full", code=1)
    assert "cannot write to `/dev/full`: no space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("read", ["in.ndjson", "file://{here}/in.ndjson"])
@pytest.mark.parametrize("written", ["in.ndjson", "link.ndjson", "file://{here}/in.ndjson"])
@pytest.mark.parametrize("option", ["-o", "--dead-letter"])
def test_no_file_is_read_and_written(here, read, written, option):
    write(here / "in.ndjson", [{"k": 1}])
    (here / "link.ndjson").symlink_to("in.ndjson")
    more = ["-o", "out.ndjson", "--retries", "1"] if option != "-o" else ["--retries", "1"]
    done = velo(
        "-i", read.format(here=here), "-k", "k", *more, option, written.format(here=here), code=2
    )
    assert "is an input; name another file" in done.stderr
    assert lines(here / "in.ndjson") == [{"k": 1}]


def test_results_and_dead_letters_go_to_two_files(here):
    write(here / "in.ndjson", [{"k": 1}])
    both = ["-o", "out.ndjson", "--dead-letter", f"file://{here}/out.ndjson"]
    assert "is the output" in velo("-i", "in.ndjson", "-k", "k", *both, code=2).stderr
    both = ["-o", "/dev/null", "--dead-letter", "/dev/null"]
    velo("-i", "in.ndjson", "-k", "k", *both)


def test_a_signal_drains(here):
    write(here / "in.ndjson", [{"k": n % 3} for n in range(50)])
    run = [sys.executable, "-m", "velo", "run", "app.py:counts", "-k", "k"]
    run += ["-i", f"file://{here}/in.ndjson?follow=true", "-o", f"file://{here}/out.ndjson"]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True)
    try:
        while not (here / "out.ndjson").exists() or len(lines(here / "out.ndjson")) < 50:
            assert process.poll() is None, process.stderr.read()
            os.sched_yield()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped: 50 events" in said
