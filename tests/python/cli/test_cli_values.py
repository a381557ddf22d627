"""Numbers, texts and keys keep their value on their way through `velo run`."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import write_script
from velo.cli import jsonlines
from velo.cli.keys import raw_member

BIG = [
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**22 + 123,
    -(2**63),
    -(2**63) - 1,
    10**300,
    7 * 10**4000,
]


def ndjson(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


FUNCTIONS = """
    from velo import stream_fn

    @stream_fn
    async def total(events):
        total = 0
        async for event in events:
            total += event["wei"]
            yield {"total": total}

    @stream_fn
    async def count(events):
        n = 0
        async for event in events:
            n += 1
            yield n

    @stream_fn
    async def made(events):
        import collections, dataclasses, datetime, decimal, enum, pathlib, uuid
        import numpy
        @dataclasses.dataclass
        class Point:
            x: object
            y: object
        Pair = collections.namedtuple("Pair", "a b")
        class Colour(enum.Enum):
            RED = "red"
        values = dict(
            decimal=decimal.Decimal("1.10"),
            big=[2**64, {2**70: -2**90}],
            nan=[float("nan"), float("inf")],
            set={3, 1, 2},
            pair=Pair(1, 2**65),
            point=Point(2**80, datetime.date(2020, 2, 1)),
            deque=collections.deque([1]),
            view=collections.OrderedDict(a=1).keys() and collections.ChainMap({"a": 1}),
            array=numpy.arange(6).reshape(2, 3)[:, ::2],
            texts=numpy.array(["a", "b"]),
            path=pathlib.PurePosixPath("/a"),
            uuid=uuid.UUID(int=1),
            colour=[Colour.RED, 2**64],
            bytes=b"x",
            surrogate="\\ud800",
            tuple_key={(1, 2): 3},
            object=object(),
            delta=datetime.timedelta(1),
            complex=1j,
            digits=10**5000,
        )
        async for event in events:
            yield values[event["name"]]
"""

FORMS = {
    "decimal": '"1.10"',
    "big": '[18446744073709551616,{"1180591620717411303424":-1237940039285380274899124224}]',
    "nan": "[null,null]",
    "set": "[1,2,3]",
    "pair": "[1,36893488147419103232]",
    "point": '{"x":1208925819614629174706176,"y":"2020-02-01"}',
    "deque": "[1]",
    "view": '{"a":1}',
    "array": "[[0,2],[3,5]]",
    "texts": '["a","b"]',
    "path": '"/a"',
    "uuid": '"00000000-0000-0000-0000-000000000001"',
    "colour": '["red",18446744073709551616]',
}
FORMLESS = {
    "bytes": "`bytes` has no form in JSON",
    "surrogate": "half of a surrogate pair",
    "tuple_key": "a `tuple` cannot be the name of a member",
    "object": "`object` has no form in JSON",
    "delta": "`.total_seconds()`",
    "complex": "`complex` has no form in JSON",
    "digits": "4300 digits",
}


@pytest.fixture
def values(velo):
    write_script(velo.folder, FUNCTIONS, "values.py")
    return velo


def test_integers_of_any_size_come_and_go(velo, mode):
    velo.file("in.ndjson", ndjson(*({"k": value, "v": [value, str(value)]} for value in BIG)))
    done = velo("run", "fns:echo", "-i", "in.ndjson", "--mode", mode)
    assert (done.code, [event["k"] for event in done.results]) == (0, BIG)
    assert done.out == json.dumps(done.results[0], separators=(",", ":")) + "\n" + "".join(
        json.dumps(event, separators=(",", ":")) + "\n" for event in done.results[1:]
    )
    done = velo("run", "fns:echo", "-i", "in.ndjson", "-k", "k", "--mode", mode)
    assert (done.code, sorted(done.by_key)) == (0, sorted(BIG))


def test_sums_beyond_64_bits(values, mode):
    values.file(
        "in.ndjson", ndjson({"wei": 18 * 10**18}, {"wei": 18 * 10**18}, {"wei": 2 * 10**19 + 1})
    )
    done = values("run", "values:total", "-i", "in.ndjson", "--mode", mode)
    assert done.results == [{"total": n} for n in (18 * 10**18, 36 * 10**18, 56 * 10**18 + 1)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1e999,12345678901234567890123]", "too large for a float"),
        ("[NaN,12345678901234567890123]", "not JSON"),
        ("[12345678901234567890123", "not JSON"),
        ("[012345678901234567890123]", "not JSON"),
        ("1" * 5000, "4300 digits"),
    ],
)
def test_long_numbers_are_read_as_strictly_as_others(velo, line, why):
    velo.file("in.ndjson", f"{line}\n12345678901234567890123\n")
    done = velo("run", "fns:echo", "-i", "in.ndjson")
    assert done.results == [12345678901234567890123]
    assert "in.ndjson:1: " in done.err
    assert why in done.err


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(-(10**40), 10**40)
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts,
        lambda part: st.lists(part, max_size=4) | st.dictionaries(texts, part, max_size=4),
    )
)
def test_what_is_written_is_read(value):
    line = jsonlines.dumps(value)
    assert line.count(b"\n") == 1
    for read in (jsonlines.loads(line), json.loads(line)):
        assert read == value
        assert repr(read) == repr(value)


def test_every_value_has_a_form_or_an_error_that_does_not_end_the_run(values, mode):
    names = [*FORMS, *FORMLESS]
    random.Random(3).shuffle(names)
    values.file("in.ndjson", ndjson(*({"name": name} for name in names)))
    run = ("run", "values:made", "-i", "in.ndjson", "--mode", mode, "--reports", 50)
    done = values(*run)
    assert done.out.splitlines() == [FORMS[name] for name in names if name in FORMS], done.err
    assert done.code == 1
    for name, why in FORMLESS.items():
        line = f"result {names.index(name) + 1:,} cannot be written: "
        assert any(line in said and why in said for said in done.err.splitlines()), (name, done.err)
    assert f"{len(FORMLESS)} results left out" in done.err
    keyed = values(*run, "-k", "name")
    assert keyed.by_key == {name: [json.loads(text)] for name, text in FORMS.items()}
    assert "of key 'object' cannot be written" in keyed.err
    strict = values(*run, "--strict")
    assert strict.code == 1
    assert "stopped, as `--strict` asks" in strict.err


KEYS = ["1", "1.0", "1.00", "true", "false", "0", "1e0", '"1"', '"true"', "10000000000000000001"]


def test_a_key_is_its_value_as_written(values, mode):
    lines = [f'{{"k":{key}}}\n' for key in KEYS] * 2
    random.Random(2).shuffle(lines)
    values.file("in.ndjson", "".join(lines))
    done = values("run", "values:count", "-i", "in.ndjson", "-k", "k", "--mode", mode)
    expected = [f'{{"key":{key},"result":{n}}}' for key in KEYS for n in (1, 2)]
    assert sorted(done.out.splitlines()) == sorted(expected)


def test_keys_of_csv_are_as_written(values, mode):
    texts = ["3.1", "3.10", "1", "1.0", "007", "0", "-0", ".5", "0.5", "true", "1e+2", "100"]
    values.file("in.csv", "k\n" + "".join(f"{text}\n" for text in texts * 2))
    done = values("run", "values:count", "-i", "in.csv", "-k", "k", "--mode", mode)
    numbers = {"3.1", "3.10", "1", "1.0", "0", "-0", "0.5", "1e+2", "100"}
    shown = [text if text in numbers else f'"{text}"' for text in texts]
    expected = [f'{{"key":{key},"result":{n}}}' for key in shown for n in (1, 2)]
    assert sorted(done.out.splitlines()) == sorted(expected)


def test_texts_are_compared_decoded_and_the_last_of_equal_names_counts(values):
    values.file(
        "in.ndjson", '{"k":"é"}\n{"k":"\\u00e9"}\n{"k":1.5,"k":"é"}\n{"k":"x","\\u006b":2.50}\n'
    )
    done = values("run", "values:count", "-i", "in.ndjson", "-k", "k")
    assert done.out == (
        '{"key":"é","result":1}\n{"key":"é","result":2}\n{"key":"é","result":3}\n'
        '{"key":2.50,"result":1}\n'
    )


def test_resume_knows_keys_as_they_are_written(values):
    values.file("in.ndjson", "".join(f'{{"k":{key}}}\n' for key in KEYS * 3))
    values.file("in.csv", "k\n" + "3.1\n3.10\n.5\n0.5\n" * 3)
    run = ("run", "values:count", "-i", "in.ndjson", "-i", "in.csv", "-k", "k", "-o", "out.ndjson")
    assert values(*run).code == 0
    out = values.folder / "out.ndjson"
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[: len(lines) // 2]))
    done = values(*run, "--resume")
    assert done.code == 0, done.err
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(lines)


@given(
    st.dictionaries(
        st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False)) | st.none()
    ),
    st.sampled_from([None, 2]),
)
def test_members_are_found_as_they_stand(event, indent):
    text = json.dumps(event, indent=indent)
    for name, value in event.items():
        assert json.loads(raw_member(text, name)) == value
    assert raw_member(text, "no such name") is None or "no such name" in event


def test_a_field_that_is_missing_is_named_with_those_there_are(velo):
    velo.file("in.ndjson", '{"user":1,"v":2}\n')
    done = velo("run", "fns:echo", "-i", "in.ndjson", "-k", "usr")
    assert done.code == 1
    assert "in.ndjson:1: no field `usr`; it has `user`, `v`; skipped" in done.err


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_minus_zero_is_a_key_of_its_own(velo, mode):
    lines = [
        b'{"k":-0}',
        b'{"k":0}',
        b'{"k": -0 ,"x":1}',
        b'{"k":-0.0}',
        b'{"k":0,"at":"2020-01-05"}',
    ]
    write_script(velo.folder, FUNCTIONS, "values.py")
    for text in (b"\n".join(lines), b"[" + b",\n".join(lines) + b"]"):
        done = velo("run", "values:count", "-i", "-", "-k", "k", "--mode", mode, stdin=text)
        assert sorted(done.out.splitlines()) == sorted(
            [
                '{"key":-0,"result":1}',
                '{"key":-0,"result":2}',
                '{"key":0,"result":1}',
                '{"key":0,"result":2}',
                '{"key":-0.0,"result":1}',
            ]
        )


@pytest.mark.parametrize("key", ["true", "1.50", "0", "-0", '"a"'])
def test_a_line_that_is_nested_deeply_has_its_key_as_written(velo, key):
    deep = "[" * 1000 + r'"\\\"]"' + "]" * 1000
    velo.file("in.ndjson", f'{{"v":{deep},"k":{key}}}\n{{"k":{key},"v":[{deep}]}}\n{{"k":7}}\n')
    write_script(velo.folder, FUNCTIONS, "values.py")
    done = velo("run", "values:count", "-i", "in.ndjson", "-k", "k")
    assert done.out.splitlines() == [
        f'{{"key":{key},"result":1}}',
        f'{{"key":{key},"result":2}}',
        '{"key":7,"result":1}',
    ], done.err


@pytest.mark.parametrize(
    "value", [{1: "a", "1": "b"}, {True: 1, "true": 2}, {"x": [{None: 1, "null": 2}]}]
)
def test_two_keys_that_are_one_name_are_an_error(value):
    with pytest.raises(TypeError, match="two keys of a dict are one name in JSON"):
        jsonlines.dumps(value)
    assert jsonlines.dumps({1: "a", "2": "b", None: 3}) == b'{"1":"a","2":"b","null":3}\n'
