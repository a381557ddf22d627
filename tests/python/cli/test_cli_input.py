"""What `velo run` reads: packed files, CSV and its values, and what is wrong with a file."""

import gzip
import io
import zipfile

import pytest

from velo.cli.convert import Converter
from velo.cli.parsing import Lines, Parser


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_", "."), text)
    return packed.getvalue()


def parsed(format, data, chunk=7, **options):
    """Events and bad lines of bytes that come `chunk` at a time."""
    stream, events, bad = io.BytesIO(data), [], []

    def emit(burst):
        events.extend(burst.events)
        bad.extend((line.number, line.why) for line in burst.bad)

    Parser(format, **options).parse(Lines(lambda: stream.read(chunk)), emit)
    return events, bad


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
        "twice.csv": "the CSV header has `a` twice",
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


def test_the_input_is_not_the_output(velo):
    velo.file("a.ndjson", "1\n")
    done = velo("run", "fns:echo", "-i", "a.ndjson", "-o", "./a.ndjson")
    assert done.code == 2
    assert "is the input" in done.err
    assert (velo.folder / "a.ndjson").read_text() == "1\n"


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize("tail", [b"", b"\n"])
def test_ndjson_however_it_arrives(chunk, tail):
    data = b'\xef\xbb\xbf{"a":1}\r\n\n"\xc3\xa9"\nx\n\xff\n[2]' + tail
    events, bad = parsed("ndjson", data, chunk)
    assert events == [{"a": 1}, "é", [2]]
    assert [number for number, _ in bad] == [4, 5]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_csv_however_it_arrives(chunk):
    data = (
        b'\xef\xbb\xbfa,"b ""c"""\r\n1,"two\nlines"\r\n\xff,1\n\n3,\n"x"y,1\n1\n4,"d,e"\n5,"open\n'
    )
    events, bad = parsed("csv", data, chunk)
    assert events == [
        {"a": 1, 'b "c"': "two\nlines"},
        {"a": 3, 'b "c"': None},
        {"a": 4, 'b "c"': "d,e"},
    ]
    assert [number for number, _ in bad] == [4, 7, 8, 10]
    assert bad[0][1] == "not UTF-8: byte 0xff at 0"
    assert bad[2][1] == "1 field, where the header has 2"
    assert bad[3][1] == "not CSV: a quote is never closed"


def test_lines_are_handed_on_before_each_wait():
    """A slow pipe's events must not wait for the next ones."""
    chunks = iter([b"1\n2\n3", b"0\n", b"4\n", b""])
    seen = []

    def read():
        seen.append(next(chunks))
        return seen[-1]

    Parser("ndjson").parse(Lines(read), lambda burst: seen.append(burst.events))
    assert seen == [b"1\n2\n3", [1, 2], b"0\n", [30], b"4\n", [4], b""]


def test_limit_reads_no_further():
    chunks = iter([b"1\n2\n3\n"])
    seen = []
    Parser("ndjson", limit=2).parse(Lines(lambda: next(chunks)), seen.append)
    assert [burst.events for burst in seen] == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("1.50", 1.5),
        (".5", 0.5),
        ("1e-05", 1e-05),
        ("-2.5E+3", -2500.0),
        ("1e+999", "1e+999"),
        *((text, text) for text in ("007", "+49", "1_000", "12E4", "0x1", "nan", "inf", " 1", "١")),
        ("NA", "NA"),
        ("true", "true"),
    ],
)
def test_values(text, value):
    event = Converter().rows(["a"])([text])
    assert event == {"a": value}
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
    assert "the CSV header has no such field" in velo(*run, "--text", "nope").err
    assert velo(*run, "--no-convert", "--text", "zip").code == 2


def test_ndjson_has_nothing_to_convert(velo):
    velo.file("in.ndjson", "1\n")
    done = velo("run", "fns:echo", "-i", "in.ndjson", "--no-convert")
    assert done.code == 2
    assert "are for CSV" in done.err
