"""`decode="csv"`: rows of lines and messages, by the rules of the CSV files of `velo run`."""

import json
import subprocess
import sys

import pytest

from velo import connect
from velo.connect import Bad
from velo.connect.errors import ConnectError
from velo.connect.formats import decoder

TEXT = 'user,amount,code,note\r\nann,10,007,"a, ""b"""\r\nbob,3.5,+49,\r\n'
EVENTS = [
    {"user": "ann", "amount": 10, "code": "007", "note": 'a, "b"'},
    {"user": "bob", "amount": 3.5, "code": "+49", "note": None},
]


async def read(source):
    items = [item async for batch in source for item in batch]
    await source.close()
    return items


def values(items):
    return [item.value for item in items]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
async def test_a_file_has_a_header(tmp_path, delimiter, bom):
    path = tmp_path / "in.csv"
    path.write_text(bom + TEXT.replace(",", delimiter).replace(f"a{delimiter} ", "a, "))
    assert values(await read(connect.file(path, decode="csv"))) == EVENTS


async def test_each_source_reads_its_own_header(tmp_path):
    rules = connect.csv()
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name}\n1\n")
    for name in ("a", "b", "a"):
        assert values(await read(connect.file(tmp_path / name, decode=rules))) == [{name: 1}]


async def test_a_position_leaves_the_header_out(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(f"\n{TEXT}")
    first, second = await read(connect.file(path, decode="csv"))
    rest = await read(connect.file(path, decode="csv", start=first.position))
    assert values(rest) == EVENTS[1:]
    assert rest[0].position == second.position


async def test_names_stand_for_a_header(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("1;2\n3;4\n")
    rules = connect.csv(["a", "b;c"], delimiter=";")
    assert values(await read(connect.file(path, decode=rules))) == [
        {"a": 1, "b;c": 2},
        {"a": 3, "b;c": 4},
    ]


async def test_fields_by_their_rules(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("a,b,c\n1,2,NA\n")
    rules = connect.csv(text=["a"], null=["NA"])
    assert values(await read(connect.file(path, decode=rules))) == [{"a": "1", "b": 2, "c": None}]
    rules = connect.csv(numbers=False)
    assert values(await read(connect.file(path, decode=rules))) == [{"a": "1", "b": "2", "c": "NA"}]


async def test_what_is_no_row_is_bad_and_the_next_one_is_read(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b'a,b\n1\n"2,3\n\xff,4\n5,6\n')
    *bad, good = await read(connect.file(path, decode="csv"))
    assert good.value == {"a": 5, "b": 6}
    assert all(isinstance(item, Bad) for item in bad)
    assert [item.record.value for item in bad] == [b"1", b'"2,3', b"\xff,4"]
    assert "1 field, where the header has 2" in str(bad[0].error)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a,a\n1,2\n", {}, "has `a` twice"),
        ("a\n1\n", {"text": ["b"]}, "has no field `b`"),
        ('"a\n1\n', {}, "cannot be read"),
    ],
)
async def test_a_header_that_is_none_ends_the_source(tmp_path, text, settings, message):
    path = tmp_path / "in.csv"
    path.write_text(text)
    with pytest.raises(ConnectError, match=message):
        await read(connect.file(path, decode=connect.csv(**settings)))


def test_a_message_is_a_row():
    decode = decoder(connect.csv("user,amount"))
    assert [decode(row) for row in (b"ann,1", b"bob,2\r\n", b'"a\nb",3')] == [
        {"user": "ann", "amount": 1},
        {"user": "bob", "amount": 2},
        {"user": "a\nb", "amount": 3},
    ]
    for row, message in ((b"", "no row"), (b"a,1\nb,2\n", "2 rows"), (b'"a', "quote")):
        with pytest.raises(ValueError, match=message):
            decode(row)
    assert decoder("csv:user,amount")(b"ann,1") == {"user": "ann", "amount": 1}


def test_a_source_of_messages_needs_names():
    pytest.importorskip("confluent_kafka")
    with pytest.raises(ValueError, match="name the fields"):
        connect.kafka("localhost:9092", "t", decode="csv")
    connect.kafka("localhost:9092", "t", decode=connect.csv(["user"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": "a,a"}, "has `a` twice"),
        ({"columns": "a,"}, "each field has a name"),
        ({"columns": []}, "each field has a name"),
        ({"columns": "a", "text": ["b"]}, "has no field `b`"),
        ({"delimiter": "ab"}, "one ASCII character"),
        ({"delimiter": '"'}, "one ASCII character"),
    ],
)
def test_rules_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        connect.csv(**settings)


APP = """
from velo import stream_fn

@stream_fn
async def same(events):
    async for event in events:
        yield event
"""


def run(folder, *args, code=0):
    (folder / "app.py").write_text(APP)
    command = [sys.executable, "-m", "velo", "run", "app.py:same", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_a_url_gives_what_a_file_gives(tmp_path, mode):
    (tmp_path / "in.csv").write_text(TEXT)
    options = ["--text", "amount", "--null", "007", "--mode", mode]
    of_file, _ = run(tmp_path, "-i", "in.csv", *options)
    of_url, _ = run(tmp_path, "-i", f"file://{tmp_path}/in.csv", "--decode", "csv", *options)
    assert of_url == of_file == [EVENTS[0] | {"amount": "10", "code": None},
                                 EVENTS[1] | {"amount": "3.5"}]  # fmt: skip


def test_a_url_without_a_header(tmp_path):
    (tmp_path / "in.csv").write_text("1;2\n")
    url = f"file://{tmp_path}/in.csv"
    assert run(tmp_path, "-i", url, "--decode", "csv:a,b", "--delimiter", ";")[0] == [
        {"a": 1, "b": 2}
    ]
    (tmp_path / "in.csv").write_text("1,2\n")
    assert run(tmp_path, "-i", f"{url}?decode=csv:a,b")[0] == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--decode", "csv", "--text", "b"], 1, "the CSV header has no field `b`"),
        (["--decode", "csv:a,a"], 2, "has `a` twice"),
        (["--decode", "csvs"], 2, 'one of "json", "msgpack", "text", "bytes", "csv"'),
        (["--text", "a"], 2, "are for CSV"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, args, code, message):
    (tmp_path / "in.csv").write_text("a\n1\n")
    _, said = run(tmp_path, "-i", f"file://{tmp_path}/in.csv", *args, code=code)
    assert message in said
    assert "Traceback" not in said
