"""What `velo run` reads: packed files, CSV and its values, and what is wrong with a file."""

import gzip
import io
import socket
import subprocess
import zipfile
import zlib

import pytest

from helpers import HANG
from velo.cli.delimited import Csv
from velo.cli.parsing import Ndjson, Rules


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_", "."), text)
    return packed.getvalue()


def parsed(make, data, chunk=7, **rules):
    """Events and bad lines of bytes that come `chunk` at a time."""
    parser = make("", Rules(**rules))
    bursts = [parser.feed(data[at : at + chunk]) for at in range(0, len(data), chunk)]
    bursts.append(parser.end())
    events = [event for burst in bursts for event in burst.events]
    return events, [(line.number, line.why) for burst in bursts for line in burst.bad]


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz", "in.csv.zip", "in.zip", "in"])
def test_packed(velo, name):
    text = "a,b\n1,x\n2,y\n"
    content = text
    if name.endswith(".gz"):
        content = gzip.compress(text.encode())
    elif name.endswith(".zip"):
        content = zipped(data_csv=text)
    velo.file(name, content)
    more = () if "." in name else ("--format", "csv")
    done = velo("run", "fns:echo", "-i", name, *more)
    assert done.results == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_several_inputs(velo):
    velo.file("b.ndjson", '{"v":1}\nx\n{"v":2}')
    velo.file("a.csv", "v\n3\n")
    velo.file("logs-2.ndjson.gz", gzip.compress(b'{"v":5}\n'))
    velo.file("logs-1.ndjson.gz", gzip.compress(b'{"v":4}\n{"v":\n'))
    inputs = ("-i", "b.ndjson", "-i", "a.csv", "-i", "-", "-i", "logs-*.gz")
    done = velo("run", "fns:echo", *inputs, stdin=b'{"v":3.5}\n[')
    assert (done.code, [event["v"] for event in done.results]) == (0, [1, 2, 3, 3.5, 4, 5])
    for place in ("b.ndjson:2: not JSON", "velo: line 2: not JSON", "logs-1.ndjson.gz:2: not JSON"):
        assert place in done.err
    assert velo("run", "fns:echo", *inputs, "--limit", "3").results == [{"v": n} for n in (1, 2, 3)]
    strict = velo("run", "fns:echo", *inputs, "--strict")
    assert (strict.code, strict.results) == (1, [{"v": 1}])
    assert "standard input can be read once" in velo("run", "fns:echo", "-i", "-", "-i", "-").err


def test_a_pattern_matches_no_output(velo):
    velo.file("a.ndjson", "1\n")
    velo.file("out.ndjson", "2\n")
    done = velo("run", "fns:echo", "-i", "*.ndjson", "-o", "out.ndjson")
    assert (done.code, (velo.folder / "out.ndjson").read_text()) == (2, "2\n")
    assert "`out.ndjson` is the input" in done.err


def test_a_file_whose_name_is_a_pattern(velo):
    velo.file("[1].ndjson", "1\n")
    assert velo("run", "fns:echo", "-i", "[1].ndjson").results == [1]


def test_unreadable(velo):
    velo.file("two.zip", zipped(a_csv="a\n1\n", b_csv="b\n"))
    velo.file("no.zip", "not a zip")
    velo.file("a.parquet", "")
    velo.file("twice.csv", "a,a\n1,2\n")
    for name, message in {
        "two.zip": "`two.zip` holds 2 files; it must hold exactly one",
        "no.zip": "`no.zip` is not a zip file",
        "a.parquet": "`a.parquet` has none of the extensions",
        "missing.csv": "cannot read `missing.csv`: no such file or directory",
        ".": "cannot read `.`: is a directory",
        "twice.csv": "the CSV header of `twice.csv` has `a` twice",
        "not-*.csv": "no file matches `not-*.csv`",
    }.items():
        done = velo("run", "fns:echo", "-i", name)
        assert (done.code, done.out) == (2, ""), name
        assert f"velo: {message}" in done.err


def test_a_file_that_breaks_off(velo):
    whole = gzip.compress(b"".join(b'{"v":%d}\n' % n for n in range(50_000)))
    velo.file("in.ndjson.gz", whole[: len(whole) // 2])
    done = velo("run", "fns:sums", "-i", "in.ndjson.gz")
    assert done.code == 1
    assert "cannot read `in.ndjson.gz` any further" in done.err
    assert len(done.results) > 1000
    assert "total" in done.results[-1]  # what was read was worked on to its end


@pytest.mark.parametrize("more", [(), ("--retries", "1")], ids=["plain", "connected"])
@pytest.mark.parametrize(
    ("name", "text", "whole"),
    [
        ("in.ndjson.gz", b"1\n2\n34", [1, 2]),
        ("in.ndjson.gz", b"1\r2\r", [1, 2]),
        ("in.csv.gz", b"v\n1\n2\n34", [{"v": 1}, {"v": 2}]),
        ("in.json.gz", b"[\n1,\n2,\n34", [1, 2]),
    ],
)
def test_the_torn_line_of_a_file_that_breaks_off_is_no_event(velo, name, text, whole, more):
    packer = zlib.compressobj(wbits=31)
    velo.file(name, packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH))
    done = velo("run", "fns:echo", "-i", name, *more)
    assert (done.code, done.results) == (1, whole), done.err
    assert f"cannot read `{name}` any further" in done.err


def test_the_input_is_not_the_output(velo):
    velo.file("a.ndjson", "1\n")
    done = velo("run", "fns:echo", "-i", "a.ndjson", "-o", "./a.ndjson")
    assert done.code == 2
    assert "is the input" in done.err
    assert (velo.folder / "a.ndjson").read_text() == "1\n"


@pytest.mark.parametrize("output", ["a.ndjson", "-"])
@pytest.mark.parametrize("input", ["a.ndjson", "-"])
@pytest.mark.parametrize("more", [(), ("--dead-letter", "dead.ndjson")], ids=["plain", "connected"])
def test_a_file_that_the_shell_opens_is_not_read_and_written(velo, input, output, more):
    velo.file("a.ndjson", "1\n2\n")
    path = velo.folder / "a.ndjson"
    with open(path, "rb") as stdin, open(path, "ab") as stdout:
        process = velo.start(
            *("run", "fns:echo", "-i", input, "-o", output, *more),
            stdin=stdin if input == "-" else subprocess.DEVNULL,
            stdout=stdout if output == "-" else subprocess.DEVNULL,
        )
        _, err = process.communicate(timeout=HANG)
    assert process.returncode == 2, err
    assert b"input; name another file for" in err
    assert path.read_text() == "1\n2\n"


def test_standard_streams_that_are_no_files_may_be_one(velo):
    here, there = socket.socketpair()
    with here, there:
        process = velo.start("run", "fns:echo", "-i", "-", stdin=there, stdout=there)
        here.sendall(b"1\n")
        here.shutdown(socket.SHUT_WR)
        process.communicate(timeout=HANG)
        assert process.returncode == 0
        assert here.recv(100) == b"1\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-i", "in.csv", "--delimiter", "ab"), "`--delimiter ab` must be"),
        (("-i", "in.csv", "--metrics", "nowhere"), "must be HOST:PORT"),
        (("-i", "file:///in.csv", "--decode", "nonsense"), "`--input`"),
        (("-i", "file:///in.csv", "--limit", "1"), "`--limit` is for files"),
        (("-i", "in.csv", "--dead-letter", "file:///dead?nonsense=1"), "`--dead-letter`"),
    ],
    ids=["delimiter", "metrics", "decode", "limit", "dead letter"],
)
def test_a_wrong_call_leaves_the_output_as_it_is(velo, options, message):
    velo.file("in.csv", "a,b\n1,2\n")
    velo.file("out.ndjson", "precious\n")
    done = velo("run", "fns:echo", *options, "-o", "out.ndjson")
    assert (done.code, message in done.err) == (2, True), done.err
    assert (velo.folder / "out.ndjson").read_text() == "precious\n"


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize("tail", [b"", b"\n"])
def test_ndjson_however_it_arrives(chunk, tail):
    data = b'\xef\xbb\xbf{"a":1}\r\n\n"\xc3\xa9"\nx\n\xff\n[2]' + tail
    events, bad = parsed(Ndjson, data, chunk)
    assert events == [{"a": 1}, "é", [2]]
    assert [number for number, _ in bad] == [4, 5]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_csv_however_it_arrives(chunk):
    data = (
        b'\xef\xbb\xbfa,"b ""c"""\r\n1,"two\nlines"\r\n\xff,1\n\n3,\n"x"y,1\n1\n4,"d,e"\n5,"open\n'
    )
    events, bad = parsed(Csv, data, chunk)
    assert events == [
        {"a": 1, 'b "c"': "two\nlines"},
        {"a": 3, 'b "c"': None},
        {"a": 4, 'b "c"': "d,e"},
    ]
    assert [number for number, _ in bad] == [4, 7, 8, 10]
    assert bad[0][1] == "not UTF-8: byte 0xff at 0"
    assert bad[2][1] == "1 field, where the header has 2"
    assert bad[3][1] == "not CSV: a quote is never closed"


def test_what_is_complete_comes_at_once():
    """A slow pipe's events must not wait for the next ones."""
    parser = Ndjson("", Rules())
    seen = [parser.feed(data).events for data in (b"1\n2\n3", b"0\n", b"", b"4\n")]
    assert seen == [[1, 2], [30], [], [4]]
    parser = Csv("", Rules())
    seen = [parser.feed(data).events for data in (b"a\n1\n2", b"", b'3\n"', b'4"\n')]
    assert seen == [[{"a": 1}], [], [{"a": 23}], [{"a": 4}]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("-9223372036854775808", -(2**63)),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1.50", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.25e+2", -25.0),
        ("1e-05", 1e-05),
        ("-2.5E+3", -2500.0),
        ("1e+999", "1e+999"),
        *((text, text) for text in ("007", "00.5", "-", ".", "-.", "1e5", "1e+", "1.5x", "1.2.3")),
        *((text, text) for text in ("+49", "1_000", "12E4", "0x1", "nan", "inf", " 1", "١")),
        ("NA", "NA"),
        ("true", "true"),
    ],
)
def test_values(text, value):
    (event,), bad = parsed(Csv, f'a\n"{text}"\n'.encode())
    assert (event, bad) == ({"a": value}, [])
    assert type(event["a"]) is type(value)


def test_conversion_options(velo):
    velo.file("in.csv", "zip,n,x\n10001,1,NA\n02139,,\n")
    run = ("run", "fns:echo", "-i", "in.csv")
    assert velo(*run, "--text", "zip", "--null", "NA").results == [
        {"zip": "10001", "n": 1, "x": None},
        {"zip": "02139", "n": None, "x": None},
    ]
    assert velo(*run, "--no-convert").results == [
        {"zip": "10001", "n": "1", "x": "NA"},
        {"zip": "02139", "n": "", "x": ""},
    ]
    assert (
        "the CSV header of `in.csv` has no such field; it has `zip`, `n`, `x`"
        in velo(*run, "--text", "nope").err
    )
    assert velo(*run, "--no-convert", "--text", "zip").code == 2


def test_ndjson_has_nothing_to_convert(velo):
    velo.file("in.ndjson", "1\n")
    done = velo("run", "fns:echo", "-i", "in.ndjson", "--no-convert")
    assert done.code == 2
    assert "are for CSV" in done.err
