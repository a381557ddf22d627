"""`velo dead-letter`: what was put aside is counted, and fed again."""

import json
import subprocess
import sys

import pytest

APP = """
from velo import stream_fn

@stream_fn
async def strict(events):
    async for event in events:
        if event["n"] == 3:
            raise ValueError("no threes")
        yield event["n"]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "in.ndjson").write_text('{"k":1,"n":2}\n{"k":1,"n":3}\n{"n":4}\n{torn\n')
    velo("run", "app.py:strict", "-i", f"file://{tmp_path}/in.ndjson", "-k", "k",
         "-o", "out.ndjson", "--dead-letter", "bad.ndjson")  # fmt: skip
    return tmp_path


def velo(*args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "velo", *args], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


def test_they_are_counted(here):
    done = velo("dead-letter", "list", "bad.ndjson")
    assert "1  strict: ValueError: no threes" in done.stdout
    assert "3  in all" in done.stdout


def test_they_are_written_as_they_came(here):
    done = velo("dead-letter", "replay", "bad.ndjson", "-o", "again.ndjson")
    assert "3 events" in done.stdout
    lines = (here / "again.ndjson").read_text().splitlines()
    assert sorted(lines) == sorted(['{"k":1,"n":3}', '{"n":4}', "{torn"])
    assert len((here / "bad.ndjson").read_text().splitlines()) == 3


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_bad_lines_of_files_are_written_as_they_came(here, mode):
    bad = [b"nonsense\r", b'{"n": \xff}', b"{torn", b'{"n": 4}']
    (here / "lines.ndjson").write_bytes(b"\n".join([b'{"k":1,"n":2}', *bad]))
    (here / "values.json").write_text('[{"k": 1, "n": 2}, {\n  "n": 5\n}]')
    velo("run", "app.py:strict", "-i", "lines.ndjson", "-i", "values.json", "-k", "k",
         "-o", "out.ndjson", "--dead-letter", "lines.bad", "--mode", mode)  # fmt: skip
    done = velo("dead-letter", "replay", "lines.bad", "-o", "again.ndjson")
    assert done.stdout == "5 events written to again.ndjson\n"
    assert (here / "again.ndjson").read_bytes() == b"\n".join([*bad, b'{   "n": 5 }', b""])


def test_a_malformed_record_of_csv_leaves_no_event(here):
    (here / "in.csv").write_text("k,n\n1,2\n1,2,3\n")
    velo("run", "app.py:strict", "-i", "in.csv", "-k", "k", "-o", "out.ndjson",
         "--dead-letter", "csv.bad")  # fmt: skip
    (letter,) = map(json.loads, (here / "csv.bad").open())
    assert "in.csv:3: 3 fields" in letter["error"]
    done = velo("dead-letter", "replay", "csv.bad", "-o", "again.ndjson")
    assert done.stdout == "0 events written to again.ndjson; 1 letters have no event\n"


def test_some_of_them(here):
    velo("dead-letter", "replay", "bad.ndjson", "--error", "KeyError", "-o", "again.ndjson")
    assert [json.loads(line) for line in (here / "again.ndjson").open()] == [{"n": 4}]
    velo("dead-letter", "replay", "bad.ndjson", "--function", "other", "-o", "none.ndjson")
    assert (here / "none.ndjson").read_bytes() == b""


def test_letters_without_an_event_are_left_out(here):
    with (here / "bad.ndjson").open("a") as letters:
        letters.write('{"function":"strict","error":"TypeError: no","key":1,"result":7}\n')
    done = velo("dead-letter", "replay", "bad.ndjson", "-o", "again.ndjson")
    assert "3 events written to again.ndjson; 1 letters have no event" in done.stdout
    assert len((here / "again.ndjson").read_text().splitlines()) == 3


def test_they_are_not_written_behind_themselves(here):
    before = (here / "bad.ndjson").read_bytes()
    done = velo("dead-letter", "replay", "bad.ndjson", "-o", "bad.ndjson", code=2)
    assert "is an input" in done.stderr
    assert (here / "bad.ndjson").read_bytes() == before


def test_what_is_no_dead_letter_is_named(here):
    (here / "bad.ndjson").write_text("7\n")
    assert (
        "no dead letter at position 2" in velo("dead-letter", "list", "bad.ndjson", code=1).stderr
    )
    assert "there is no file" in velo("dead-letter", "list", "none.ndjson", code=66).stderr
