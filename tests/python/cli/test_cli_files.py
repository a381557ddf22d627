"""`velo run` and files as people have them."""

import bz2
import codecs
import contextlib
import gzip
import json
import lzma
import os
import re
import signal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import HANG, until_sync
from velo._csv import sniff
from velo.cli.decoding import Decoder
from velo.cli.delimited import Csv
from velo.cli.documents import Json
from velo.cli.errors import Failure
from velo.cli.parsing import Rules

ROWS = [{"name": "Zoë", "n": 1}, {"name": "x,y", "n": 2}]


def csv(delimiter=",", end="\n"):
    quoted = '"x,y"' if delimiter == "," else "x,y"
    return end.join([f"name{delimiter}n", f"Zoë{delimiter}1", f"{quoted}{delimiter}2", ""])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("utf-8", ()),
        ("utf-8-sig", ()),
        ("utf-16", ()),
        ("utf-32", ()),
        ("latin-1", ("--encoding", "latin-1")),
        ("cp1252", ("--encoding", "windows-1252")),
        ("utf-16-le", ("--encoding", "utf-16-le")),
    ],
)
def test_line_ends_and_encodings(velo, end, encoding, option):
    velo.file("in.csv", csv(end=end).encode(encoding))
    velo.file(
        "in.ndjson",
        "".join(json.dumps(row, ensure_ascii=False) + end for row in ROWS).encode(encoding),
    )
    done = velo("run", "fns:echo", "-i", "in.csv", "-i", "in.ndjson", *option)
    assert (done.code, done.results) == (0, ROWS * 2), done.err


@example('"""\r"\ra', [4], "utf-8", True)
@example("a\r\r\n", [16, 16], "utf-32", False)
@given(
    st.text(st.sampled_from('ab,"\r\né'), max_size=40),
    st.lists(st.integers(0, 80), max_size=8),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.booleans(),
)
def test_however_its_bytes_arrive_a_file_is_decoded_alike(text, cuts, encoding, quotes):
    data = text.encode(encoding)
    whole = Decoder(quotes=quotes)
    expected = whole.feed(data) + whole.feed(b"", last=True)
    parts = Decoder(quotes=quotes)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    got = b"".join(parts.feed(data[a:b]) for a, b in zip(edges, edges[1:]))
    assert got + parts.feed(b"", last=True) == expected
    plain = re.findall("\r\n|\r|\n", text)
    if not quotes and plain and plain[0] == "\r":
        assert expected.decode() == text.replace("\r\n", "\n").replace("\r", "\n")
    elif not quotes:
        assert expected.decode() == text


def test_what_is_not_utf8_is_told_with_what_to_do(velo):
    velo.file("in.csv", "name,n\nZoë,1\nBob,2\n".encode("latin-1"))
    velo.file("head.csv", "naïve,n\n1,2\n".encode("latin-1"))
    done = velo("run", "fns:echo", "-i", "in.csv")
    assert done.results == [{"name": "Bob", "n": 2}]
    assert "in.csv:2: not UTF-8" in done.err
    assert "--encoding" in done.err
    assert "--encoding" in velo("run", "fns:echo", "-i", "head.csv").err
    velo.file("bad.csv", b"name,n\nZo\x81,1\nBob,2\n")
    done = velo("run", "fns:echo", "-i", "bad.csv", "--encoding", "cp1252")
    assert done.results == [{"name": "Bob", "n": 2}]
    assert "bad.csv:2: not cp1252" in done.err
    for name in ("rot13", "nonsense", "hex"):
        done = velo("run", "fns:echo", "-i", "in.csv", "--encoding", name)
        assert (done.code, "no such encoding" in done.err) == (2, True)


@pytest.mark.parametrize(
    "delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"]
)
@pytest.mark.parametrize("trailing", [0, 1, 3])
def test_delimiters_are_found_and_empty_columns_left_out(velo, delimiter, trailing):
    more = delimiter * trailing
    velo.file("in.csv", csv(delimiter, f"{more}\r\n"))
    done = velo("run", "fns:echo", "-i", "in.csv")
    assert (done.code, done.results) == (0, ROWS), done.err
    assert ("--delimiter" in done.err) == (delimiter != ",")


def test_delimiters_that_are_said(velo):
    velo.file("in.csv", "a b,c\n1 2\n")
    run = ("run", "fns:echo", "-i", "in.csv", "--delimiter")
    assert velo(*run, "space").results == [{"a": 1, "b,c": 2}]
    velo.file("in.csv", "a\tb\n1\t2\n")
    for name in ("tab", "\\t", "\t"):
        assert velo(*run, name).results == [{"a": 1, "b": 2}]
    for name in ("", "ab", "é", '"'):
        assert velo(*run, name).code == 2
    velo.file("in.tsv", "a;x\tb\n1\t2\n")
    assert velo("run", "fns:echo", "-i", "in.tsv").results == [{"a;x": 1, "b": 2}]
    done = velo("run", "fns:echo", "-i", "-", "--format", "tsv", stdin=b"a\tb\n1\t2\n")
    assert done.results == [{"a": 1, "b": 2}]
    velo.file("in.csv", "sep=;\r\na;b\r\n1;2\r\nx\r\n")  # as Excel has it
    done = velo("run", "fns:echo", "-i", "in.csv")
    assert done.results == [{"a": 1, "b": 2}]
    assert "in.csv:4: 1 field, where the header has 2" in done.err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b\n1;2\n", ","),
        ("a;b\n1,5;2\n", ";"),
        ("a,b;c\n1;2\n", ";"),
        ('"a;b",c\n1,2\n', ","),
        ("a\n1\n", ","),
        ("", ","),
        ("a;b;c|d\n", ";"),
    ],
)
def test_what_is_between_fields(text, found):
    assert sniff(text.encode()) == found


def test_a_value_without_a_name_is_told(velo):
    velo.file("in.csv", "a,b,,\n1,2,,\n1,2,,x\n3,4\n")
    done = velo("run", "fns:echo", "-i", "in.csv")
    assert done.results == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert "in.csv:3: 4 fields, where the header has 2" in done.err


def test_many_columns(velo):
    count = 200_000
    header = ",".join(f"gene_{number}" for number in range(count))
    row = ",".join(map(str, range(count)))
    (event,), bad = parsed(Csv, f"{header}\n{row}\n".encode(), 65536)
    assert bad == []
    assert len(event) == count
    assert event["gene_199999"] == 199_999
    velo.file("in.csv", f"{header}\n{row}\n")
    done = velo("run", "fns:echo", "-i", "in.csv", "-k", "gone")
    assert "200,000 fields, among them `gene_" in done.err
    assert len(done.err) < 500
    velo.file("in.csv", f"{header},gene_5\n{row},1\n")
    assert "has `gene_5` twice" in velo("run", "fns:echo", "-i", "in.csv").err


def parsed(make, data, chunk=7, **options):
    parser = make("", Rules(), **options)
    bursts = [parser.feed(data[at : at + chunk]) for at in range(0, len(data), chunk)]
    bursts.append(parser.end())
    events = [event for burst in bursts for event in burst.events]
    return events, [(line.number, line.why) for burst in bursts for line in burst.bad]


ELEMENTS = [{"a": 1, "t": "] , [é"}, [2], "x", 3.5, None, True, 10**30, {"b": {"c": [1, {}]}}]


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_arrays_of_json(chunk, indent):
    data = json.dumps(ELEMENTS, indent=indent, ensure_ascii=False).encode()
    for text in (data, data + b"\n", b"\n " + data, codecs.BOM_UTF8 + data):
        assert parsed(Json, text, chunk) == (ELEMENTS, [])
    objects = [element for element in ELEMENTS if isinstance(element, dict)]
    lines = "\n".join(json.dumps(each, indent=indent) for each in objects)
    assert parsed(Json, lines.encode(), chunk) == (objects, [])


def test_lines_stay_lines():
    data = b'[1,2]\n[3]\nx\n{"a":1}\n'
    assert parsed(Json, data)[0] == [[1, 2], [3], {"a": 1}]
    assert parsed(Json, b"[1,2]\n", whole=False)[0] == [[1, 2]]
    assert parsed(Json, b"[1,2]\n")[0] == [1, 2]
    assert parsed(Json, b"") == ([], [])
    assert parsed(Json, b"[]") == ([], [])
    assert parsed(Json, b"7") == ([7], [])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[\n{"a":1},\n{"a":}\n]', 3),
        ("[\n1,\n2\n", 4),
        ("[\n1 2]", 2),
        ("[\n1,]", 2),
        ("[\n1]\n2", 3),
        ("[\nNaN]", 2),
        ("[\n" + "[" * 100_000, 2),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_where_an_array_breaks_off(text, place, chunk):
    chunk = max(chunk, len(text) // 50)
    with pytest.raises(Failure, match=rf"line {place}: not JSON"):
        parsed(Json, text.encode(), chunk)


def test_an_array_of_json_is_run(velo, mode):
    velo.file("in.json", json.dumps([{"k": key, "v": 1} for key in (1, 1.0, True, 1)], indent=1))
    done = velo("run", "fns:sums", "-i", "in.json", "-k", "k", "--mode", mode)
    assert done.code == 0
    assert sorted(done.out.splitlines()) == sorted(
        f'{{"key":{key},"result":{result}}}'
        for key, results in (
            ("1", (1, 2, '{"total":2}')),
            ("1.0", (1, '{"total":1}')),
            ("true", (1, '{"total":1}')),
        )
        for result in results
    )
    done = velo("run", "fns:echo", "-i", "-", stdin=b"[\n1,\n2]\n")
    assert done.results == [1, 2]
    done = velo("run", "fns:echo", "-i", "-", stdin=b"[1,2]\n")
    assert done.results == [[1, 2]]  # a pipe that may go on: it is a line
    assert "the only line of the input is an array" in done.err
    assert "`--format json` makes an event of each of its elements" in done.err
    done = velo("run", "fns:echo", "-i", "-", "--format", "json", stdin=b"[1,2]\n")
    assert done.results == [1, 2]
    done = velo("run", "fns:echo", "-i", "-", stdin=b"[1,2]\n[3]\n")
    assert (done.results, "is an array" in done.err) == ([[1, 2], [3]], False)
    done = velo("run", "fns:echo", "-i", "-", "-k", "k", stdin=b'[{"k":1}]\n')
    assert "line 1: an array, and no object with a field `k`; `--format json` makes" in done.err
    velo.file("in.json", '[{"v":1},\n{"v":2},\n{"v" 3}]')
    done = velo("run", "fns:echo", "-i", "in.json")
    assert (done.code, done.results) == (1, [{"v": 1}, {"v": 2}])
    assert "in.json:3: not JSON" in done.err


LARGE = {"x\\": ['a "quoted" ] and }', "\\", "{[" * 30, "é\n", 1.5, None]}


@pytest.mark.parametrize(
    "document",
    [
        {"rows": [LARGE] * 2000},
        {"rows": [[[LARGE] * 40] * 50]},
        {"text": '\\"]}' * 40_000},
        {"numbers": list(range(40_000))},
    ],
)
@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("size", [100, 4096, 65_536, 1 << 20])
def test_a_large_document_comes_with_its_last_byte(document, array, size, monkeypatch):
    decoded = []
    decode = json.JSONDecoder.raw_decode
    monkeypatch.setattr(
        json.JSONDecoder, "raw_decode", lambda *args: decoded.append(args[2]) or decode(*args)
    )
    text = json.dumps(document, indent=1)
    assert len(text) > 150_000
    parser = Json("", Rules())
    for begin in ("[\n", ",") if array else ("", "\n"):
        decoded.clear()
        data = f"{begin}{text}".encode()
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        *before, last = [parser.feed(part).events for part in parts]
        assert not any(before)
        assert last == [document]
        assert len(decoded) < 700  # of the first 64 KiB, each part; of the rest, few
    if array:
        parser.feed(b"]")
    assert parser.end().events == []


def zstd(data):
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return pytest.importorskip(name).compress(data)
        except pytest.skip.Exception:
            continue
    pytest.skip("no zstd here")


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_files(velo, suffix):
    pack = PACKED[suffix]
    velo.file(f"a.csv{suffix}", pack(b"v\n1\n") + pack(b"2\n"))
    velo.file(f"B.NDJSON{suffix.upper()}", pack(b'{"v":3}\n' * 50_000))
    done = velo("run", "fns:sums", "-i", f"a.csv{suffix}", "-i", f"B.NDJSON{suffix.upper()}")
    assert (done.code, done.results[-1]) == (0, {"total": 150_003}), done.err
    whole = pack(b"".join(b'{"v":%d}\n' % number for number in range(50_000)))
    velo.file(f"cut.ndjson{suffix}", whole[: len(whole) // 2])
    done = velo("run", "fns:sums", "-i", f"cut.ndjson{suffix}")
    assert done.code == 1
    assert f"cannot read `cut.ndjson{suffix}` any further" in done.err
    velo.file(f"no.ndjson{suffix}", b"this is none of that kind")
    done = velo("run", "fns:sums", "-i", f"no.ndjson{suffix}")
    assert done.code == 1
    assert "Traceback" not in done.err


def test_results_that_are_packed(velo):
    zstd(b"")
    velo.file("in.ndjson", "1\n2\n")
    for name in ("out.ndjson.zst", "out.ndjson.gz"):
        assert velo("run", "fns:echo", "-i", "in.ndjson", "-o", name).code == 0
        assert velo("run", "fns:echo", "-i", name).results == [1, 2]


class Log:
    """A CSV file that is followed, and what has come out."""

    def __init__(self, velo, *options):
        self.path = velo.folder / "log.csv"
        self.out = velo.folder / "out.ndjson"
        self.path.write_text("t,v\n1,10\n2,20\n")
        self.process = velo.start(
            "run", "fns:echo", "-i", "log.csv", "--follow", "-o", "out.ndjson", *options
        )
        self.wait({"t": 1, "v": 10}, {"t": 2, "v": 20})

    def results(self):
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        return [json.loads(line) for line in lines]

    def wait(self, *expected):
        found = [*expected]
        until_sync(lambda: self.results()[-len(found) :] == found, describe=self.results)

    def add(self, text):
        with open(self.path, "a") as file:
            file.write(text)

    def cut(self):
        self.path.write_text("")
        # Once it was seen to be short.
        until_sync(lambda: self.position() == 0)

    def position(self):
        folder = f"/proc/{self.process.pid}"
        for fd in os.listdir(f"{folder}/fd"):
            if os.readlink(f"{folder}/fd/{fd}") == str(self.path):
                with open(f"{folder}/fdinfo/{fd}") as info:
                    return int(info.readline().split()[1])
        return None

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 143
        return err.decode()


def test_a_header_that_was_written_once_holds_when_the_file_is_cut(velo):
    log = Log(velo)
    log.cut()
    log.add("3,30\n")
    log.wait({"t": 3, "v": 30})
    log.add("3,3\n4,40\n")
    log.wait({"t": 3, "v": 3}, {"t": 4, "v": 40})
    assert len(log.results()) == 5
    assert "goes on without a header" in log.stop()


def test_a_header_that_comes_again_is_none_of_the_events(velo):
    log = Log(velo)
    log.cut()
    log.add("t,v\n5,50\n")
    log.wait({"t": 5, "v": 50})
    log.cut()
    log.add("v,t\n60,6\n")  # its columns have changed places
    log.wait({"v": 60, "t": 6})
    log.cut()
    log.add("a,b,c\n1,2,3\n")
    log.wait({"a": 1, "b": 2, "c": 3})
    assert len(log.results()) == 5
    assert "another header" in log.stop()


def test_a_rotated_file_may_have_a_header_or_none(velo):
    log = Log(velo)
    log.path.rename(velo.folder / "log.1")
    log.path.write_text("3,30\n")
    log.wait({"t": 3, "v": 30})
    log.path.rename(velo.folder / "log.2")
    log.path.write_text("t,v\n4,40\n")
    log.wait({"t": 4, "v": 40})
    assert len(log.results()) == 4
    log.stop()


@pytest.mark.parametrize("empty", [b"", codecs.BOM_UTF8], ids=["empty", "bom"])
def test_the_delimiter_of_a_file_in_the_place_of_an_empty_one_is_found(velo, empty):
    log, out = velo.folder / "log.csv", velo.folder / "out.ndjson"
    log.write_bytes(empty)
    process = velo.start("run", "fns:echo", "-i", "log.csv", "--follow", "-o", "out.ndjson")
    until_sync(lambda: is_open(process.pid, log))
    velo.file("new.csv", "name;n\nann;5\n")
    os.replace(velo.folder / "new.csv", log)
    until_sync(lambda: out.exists() and out.stat().st_size)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG)
    assert json.loads(out.read_text()) == {"name": "ann", "n": 5}


def is_open(pid, path):
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(FileNotFoundError):  # one that was closed meanwhile
        return any(os.readlink(fd) == str(path) for fd in folder.iterdir())
