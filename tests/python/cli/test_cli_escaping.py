"""Text that comes out of events, as a terminal gets it."""

import ast
import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import velo
from helpers import HANG, environment, write_script
from velo.cli.supervisor import screen
from velo.cli.text import block, inline, safe_json

EVIL = "\x1b]0;PWNED\x07\x1b[2J\nvelo: all is well\x9b1A\x7f\u202egpj.exe\u2066\u200b\u2028\r"
# What none of the escapes may let through.
RAW = [character for character in EVIL if not character.isprintable()]


def raw(text, allowed="\n"):
    return [character for character in text if character in RAW and character not in allowed]


@given(st.text())
def test_whatever_it_is_a_line_stays_one_line_of_what_is_seen(text):
    shown = inline(text)
    assert len(shown.splitlines()) <= 1
    for character in shown:
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert not 0x200B <= ord(character) <= 0x200F
        assert not 0x202A <= ord(character) <= 0x202E
    assert block(text).count("\n") == text.count("\n")
    shown.encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_for_a_terminal_means_the_same(text):
    line = json.dumps({text: text}, ensure_ascii=False).encode()
    shown = safe_json(line)
    assert json.loads(shown) == {text: text}
    assert not raw(shown.decode(), "")


def test_ordinary_text_stays_as_it_is():
    for text in ("naïve café", "日本語 🙂", "a\\b", "שלום"):
        assert inline(text) == block(text) == text
        assert safe_json(f'"{text}"'.encode()) == f'"{text}"'.encode()


def test_no_console_takes_a_word_between_colons_for_an_emoji():
    consoles = [
        (path.name, ast.unparse(node))
        for path in Path(velo.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console"
    ]
    assert consoles
    assert [made for made in consoles if "emoji=False" not in made[1]] == []


RAISES = """
    import sys
    from velo import stream_fn

    @stream_fn
    async def bad(events):
        async for event in events:
            raise ValueError(event["t"])
            yield

    @stream_fn
    async def odd(events):
        async for event in events:
            yield object()
"""


def test_errors_keys_and_names_of_files(velo, mode):
    write_script(velo.folder, RAISES, "raises.py")
    name = "in\x1b[2J\u202e.ndjson"
    event = json.dumps({"k": EVIL, "t": EVIL})
    velo.file(name, f"x\n{event}\n")
    for function in ("raises.py:bad", "raises.py:odd"):
        done = velo("run", function, "-i", name, "-k", "k", "--mode", mode)
        assert done.code == 1
        assert not raw(done.err), done.err
        assert "in\\x1b[2J\\u202e.ndjson:1" in done.err
        assert "\\x1b]0;PWNED" in done.err
    done = velo("run", "raises.py:bad", "-i", name, "--text", EVIL)
    assert not raw(done.err), done.err
    done = velo("run", f"raises.py:{EVIL}", "-i", name)
    assert not raw(done.err), done.err


def test_results_in_a_terminal(velo):
    event = json.dumps({"t": EVIL}, ensure_ascii=False)
    velo.file("in.ndjson", f"{event}\n")
    command = [sys.executable, "-m", "velo", "run", "fns:echo", "-i", "in.ndjson", "--no-progress"]
    here, there = pty.openpty()
    process = subprocess.Popen(
        command, cwd=velo.folder, env=environment(), stdout=there, stderr=subprocess.DEVNULL
    )
    os.close(there)
    written = b""
    while True:
        try:
            data = os.read(here, 4096)
        except OSError:
            break
        written += data
    os.close(here)
    assert process.wait(timeout=HANG) == 0
    assert not raw(written.decode(), "\r\n")
    assert json.loads(written) == {"t": EVIL}
    # A file gets what it would have got.
    assert (
        velo("run", "fns:echo", "-i", "in.ndjson").out.encode()
        == json.dumps({"t": EVIL}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    )


STREAM = {
    **dict.fromkeys(
        ("events", "queued", "results", "bytes_in", "bytes_out", "worker", "client"), 1
    ),
    **dict.fromkeys(("events_per_second", "latency_p50", "latency_p99"), 1.0),
    "state": "open",
    "age": 1.0,
    "link": 1,
    "slot": 1,
    "name": EVIL,
    "key": EVIL,
    "keys": None,
    "function": f"{EVIL}:{EVIL}",
}


@pytest.mark.parametrize("wide", [False, True])
def test_what_top_shows(wide):
    cells = screen._stream_cells(STREAM, wide)
    assert not raw("".join(map(str, cells)), "")
