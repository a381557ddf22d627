"""Lines that travel as their text: they arrive as the events that parsing them here gives."""

import contextlib
import csv
import io
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo import _core
from velo.cli.delimited import Csv
from velo.cli.keys import Keys
from velo.cli.parsing import Ndjson, Rules

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
OBJECTS = st.dictionaries(
    st.sampled_from(["k", "a", "k2", "ü", "\\"]) | st.text(max_size=3), VALUES
)
# Parts of lines that the scanner has to be strict about.
PARTS = st.sampled_from(
    [
        *('{"k":', '"k"', ":", ",", "{", "}", "[", "]", '"', "\\", " ", "\t", "\r", "-", "0", "1"),
        *("-0", "0.5", "1e5", "1.", ".5", "01", "true", "false", "null", "nul", "NaN", "\\u0041"),
        *("12345678901234567", "123456789012345678901", '"a"', '"k":1', '"k":"b"', "ü", "\x00"),
    ]
)


def burst_of(kind, data, *, lines, key="k", **rules):
    """The events, as they arrive in a worker, and their keys; bad lines and line numbers."""
    keys = None if key is None else Keys(key)
    parser = kind("", Rules(keys=keys, lines=lines, **rules))
    bursts = [parser.feed(data), parser.end()]
    events = [event for burst in bursts for event in burst.events]
    found = [None if keys is None else shown(keys.find(event)) for event in events]
    arrived = [_core.loads(_core.dumps(event)) for event in events]
    bad = [str(line) for burst in bursts for line in burst.bad]
    numbers = [number for burst in bursts for number in burst.lines]
    return [exact(event) for event in arrived], found, bad, numbers


def shown(key):
    return type(key).__name__, str(key)


def exact(value):
    """A text that differs for values of different types, and for members in another order."""
    return repr(value)


def differs_not(kind, data, **rules):
    assert burst_of(kind, data, lines=True, **rules) == burst_of(kind, data, lines=False, **rules)


@given(st.lists(OBJECTS, max_size=5), st.booleans(), st.sampled_from(["k", None]))
def test_objects_arrive_as_they_are(objects, spaced, key):
    text = "\n".join(json.dumps(each, indent=None, ensure_ascii=spaced) for each in objects)
    differs_not(Ndjson, text.encode(errors="replace") + b"\n", key=key)


@given(st.lists(PARTS, max_size=12).map("".join))
def test_what_is_taken_unparsed_is_what_orjson_reads(line):
    (found,) = _core.json_lines(line.encode(), "k", str)
    if found is not None:
        event = orjson.loads(line)
        assert exact(_core.loads(_core.dumps(found))) == exact(event)
    differs_not(Ndjson, line.encode() + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b'{"k":"a","b":[1,2.5,{"c":null}]}',
        b'{"k":7}',
        b'{"k":1,"k":"last"}',
        b'{"k":3.10}',
        b'{"k":true}',
        b'{"k":-0}',
        b' { "k" : "\xc3\xbc" }\r',
    ],
)
def test_usual_lines_travel_unparsed(line):
    (found,) = _core.json_lines(line, "k", str)
    assert isinstance(found, _core.Line)
    differs_not(Ndjson, line + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"  ", b"[1]", b'"a"', b"{}", b'{"a":1}', b'{"k":null}', b'{"k":[1]}', b'{"k":"a'),
        *(b'{"k":"\\u0041"}', b'{"\\u006b":"a"}', b'{"k":1e5}', b'{"k":123456789012345678901}'),
        *(b'{"k":1}x', b'{"k":1,}', b'{"k":01}', b'{"k":NaN}', b'{"k":"\xff"}', b'{"k":"\t"}'),
    ],
)
def test_other_lines_are_parsed_at_once(line):
    assert _core.json_lines(line, "k", str) == [None]
    differs_not(Ndjson, b'{"k":0}\n' + line + b'\n{"k":"after"}\n')


FIELDS = st.sampled_from(
    [
        *("", "a", "ü", "NA", "-", "0", "-0", "7", "007", "3.1", "3.10", "1e-5", "12E4", "x,y"),
        *('q"q', "two\nlines", "123456789012345678901", " 5", "5 ", "-.5", "+49"),
    ]
)
ROWS = st.lists(st.lists(FIELDS, min_size=1, max_size=4), max_size=6)


@given(ROWS, st.booleans(), st.sampled_from([(), ("k",), ("b",)]), st.sampled_from(["k", None]))
def test_records_arrive_as_they_are(rows, numbers, text, key):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["a", "k", "b"], *rows])
    rules = {"numbers": numbers, "text": text, "null": ("NA",), "key": key}
    differs_not(Csv, file.getvalue().encode(), **rules)


def test_records_of_files_with_other_columns_arrive_as_they_are():
    first = burst_of(Csv, b"a,k\n1,x\n", lines=True)
    second = burst_of(Csv, b"k;b;c\ny;2.5;\n", lines=True)
    assert first[0] == [exact({"a": 1, "k": "x"})]
    assert second[0] == [exact({"k": "y", "b": 2.5, "c": None})]
    assert burst_of(Csv, b"a,k\n1,x\n", lines=True) == first


def test_bytes_that_are_no_line_are_refused():
    (line,) = Csv("", Rules(lines=True)).feed(b"a,b\n1,2\n").events
    packed = _core.dumps(line)
    assert _core.loads(packed) == {"a": 1, "b": 2}
    for at in range(len(packed)):
        for damaged in (packed[:at], packed[:at] + b"\xff" + packed[at + 1 :]):
            with contextlib.suppress(ValueError):
                _core.loads(damaged)
