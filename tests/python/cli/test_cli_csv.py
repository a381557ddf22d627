"""The CSV parser beside Python's own, which is as strict."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo.cli.delimited import Csv
from velo.cli.parsing import Rules

HEADER = ["a", "b", "c"]
text = st.text(st.sampled_from('ab",\r\n é0.-'), max_size=8)


def parsed(data, cuts=()):
    """Events and bad lines of bytes that come in pieces."""
    parser = Csv("", Rules(numbers=False))
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    bursts = [parser.feed(data[a:b]) for a, b in zip(edges, edges[1:])] + [parser.end()]
    events = [event for burst in bursts for event in burst.events]
    return events, [(line.number, line.why) for burst in bursts for line in burst.bad]


@given(
    st.lists(st.lists(text, min_size=3, max_size=3), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_what_the_csv_module_writes_is_read(rows, end, quoting, cuts):
    if quoting == csv.QUOTE_MINIMAL:  # it leaves a carriage return that ends nothing unquoted
        rows = [[field.replace("\r", "") for field in row] for row in rows]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=quoting).writerows([HEADER, *rows])
    events, bad = parsed(file.getvalue().encode(), cuts)
    assert bad == []
    assert events == [dict(zip(HEADER, row)) for row in rows]


def by_the_csv_module(text):
    """Rows, and the lines at which one begins that is none."""
    lines = text.splitlines(keepends=True)
    reader = csv.reader(iter(lines), strict=True)
    rows, bad = [], []
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return rows, bad
        except csv.Error:
            bad.append(number)
        else:
            if row and (len(row) < len(HEADER) or any(row[len(HEADER) :])):
                bad.append(number)
            elif row:  # spreadsheets write empty fields at the end
                rows.append(dict(zip(HEADER, row)))


@given(st.text(st.sampled_from('ab",\n'), max_size=40), st.lists(st.integers(0, 60), max_size=8))
def test_what_is_broken_is_found_where_the_csv_module_finds_it(body, cuts):
    rows, bad = by_the_csv_module(body)
    events, found = parsed(f"{','.join(HEADER)}\n{body}".encode(), cuts)
    assert events == rows
    assert [number - 1 for number, _ in found] == bad


@pytest.mark.parametrize("chunk", [1000, 65536])
def test_a_quote_that_is_missing_costs_a_mebibyte_at_most(chunk):
    data = b'a,b,c\n"1,2,3\n' + b"4,5,6\n" * 400_000
    events, bad = parsed(data, range(0, len(data), chunk))
    ((number, why),) = [line for line in bad if line[0] == 2]
    assert "a quote may be missing (up to line " in why
    lost = int(why.rpartition(" ")[2].rstrip(")"))
    assert len(events) == 400_002 - lost
    assert 2**20 <= 6 * lost < 2**20 + 2 * chunk + 10


def test_a_line_without_an_end_costs_no_more_than_itself():
    data = b"a,b,c\n" + b"x" * 5_000_000 + b"\n1,2,3\n"
    events, bad = parsed(data, range(0, len(data), 65536))
    assert events == [{"a": "1", "b": "2", "c": "3"}]
    assert [number for number, _ in bad] == [2]


def test_line_numbers_after_what_was_given_up():
    data = b"a,b,c\n" + b"x" * 5_000_000 + b"\n1,2,3\n1\n"
    _, bad = parsed(data, range(0, len(data), 65536))
    assert [number for number, _ in bad] == [2, 4]
