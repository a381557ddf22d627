"""`velo run`: what comes out, and with which exit code."""

import gzip
import json
import random
import signal

import pytest

from helpers import HANG, write_script


def ndjson(events):
    return "".join(json.dumps(event) + "\n" for event in events)


def values(count, keys=3):
    return [{"k": f"key-{number % keys}", "v": number} for number in range(count)]


def test_one_stream_without_key(velo, mode):
    source = velo.file("in.ndjson", ndjson(values(4)))
    done = velo("run", "fns.py:sums", "-i", source, "--mode", mode)
    assert (done.code, done.results) == (0, [0, 1, 3, 6, {"total": 6}])
    assert done.err.startswith("4 events in ")
    assert "1 stream, 5 results\n" in done.err


def test_one_stream_per_key(velo, mode):
    source = velo.file("in.ndjson", ndjson(values(6, keys=2)))
    done = velo("run", "fns:sums", "--input", source, "--key", "k", "--mode", mode)
    assert done.code == 0
    assert done.by_key == {
        "key-0": [0, 2, 6, {"total": 6}],
        "key-1": [1, 4, 9, {"total": 9}],
    }
    assert all(line.keys() == {"key", "result"} for line in done.results)
    assert "2 streams, 8 results" in done.err


@pytest.mark.parametrize("recover", ["none", "replay"])
def test_more_keys_than_a_worker_holds_streams(velo, mode, recover):
    write_script(
        velo.folder,
        f"""
        from velo import stream_fn

        @stream_fn(recover={recover!r})
        async def sums(events):
            total = 0
            async for event in events:
                total += event["v"]
                yield total
        """,
        "summing.py",
    )
    velo.file("in.ndjson", "".join(f'{{"k":{n % 20_000},"v":{n}}}\n' for n in range(40_000)))
    done = velo("run", "summing.py:sums", "-i", "in.ndjson", "-k", "k", "--mode", mode)
    assert done.code == 0, done.err
    assert done.by_key == {key: [key, 2 * key + 20_000] for key in range(20_000)}
    assert "40,000 events" in done.err
    assert "20,000 streams, 40,000 results" in done.err


def test_modes_give_the_same(velo):
    dice = random.Random(7)
    events = [
        {"k": dice.randrange(50), "v": dice.choice([1, 2.5, -3]), "t": "é" * dice.randrange(9)}
        for _ in range(5000)
    ]
    source = velo.file("in.ndjson", ndjson(events))
    inline = velo("run", "fns:sums", "-i", source, "-k", "k")
    process = velo("run", "fns:sums", "-i", source, "-k", "k", "--mode", "process", "--workers", 2)
    assert inline.code == process.code == 0
    assert inline.by_key == process.by_key
    assert len(inline.results) == 5050
    assert "50 streams" in inline.err
    assert "50 streams" in process.err


def test_output_file(velo):
    source = velo.file("in.ndjson", ndjson(values(3)))
    done = velo("run", "fns:echo", "-i", source, "-o", "out.ndjson")
    assert (done.code, done.out) == (0, "")
    assert (velo.folder / "out.ndjson").read_text() == (
        '{"k":"key-0","v":0}\n{"k":"key-1","v":1}\n{"k":"key-2","v":2}\n'
    )
    done = velo("run", "fns:echo", "-i", source, "-o", "out.ndjson.gz")
    assert len(gzip.decompress((velo.folder / "out.ndjson.gz").read_bytes()).splitlines()) == 3


@pytest.mark.parametrize("format", ["ndjson", "csv"])
def test_bad_lines_are_reported_and_skipped(velo, format):
    good, bad = {
        "ndjson": ('{"k":1,"v":1}\n\n{"k":1,"v":2}\n', '{"k":\n{"v":1}\n[1]\n{"k":null}\n'),
        "csv": ("k,v\n1,1\n\n1,2\n", '1\n"x"y,1\n1,1,1\n,1\n'),
    }[format]
    source = velo.file(f"in.{format}", good + bad)
    done = velo("run", "fns:sums", "-i", source, "-k", "k")
    assert (done.code, done.by_key) == (0, {1: [1, 3, {"total": 3}]})
    first = 4 if format == "ndjson" else 5
    for number in range(first, first + 4):
        assert f"velo: in.{format}:{number}: " in done.err
    assert "2 events in " in done.err
    assert ", 4 skipped\n" in done.err


def test_bad_lines_are_counted_when_there_are_many(velo):
    source = velo.file("in.ndjson", "x\n" * 100 + "1\n")
    done = velo("run", "fns:echo", "-i", source)
    assert done.err.count("in.ndjson:") == 5
    assert ", 100 skipped\n" in done.err
    assert velo("run", "fns:echo", "-i", source, "--reports", 50).err.count("in.ndjson:") == 50


def test_missing_key(velo):
    source = velo.file("in.ndjson", '{"k":1}\n{"j":1}\n{"k":[]}\n7\n{"k":2}\n')
    done = velo("run", "fns:echo", "-i", source, "-k", "k")
    assert sorted(done.by_key) == [1, 2]
    assert "in.ndjson:2: no field `k`" in done.err
    assert "in.ndjson:3: `k` is a list" in done.err
    assert "in.ndjson:4: not an object with a field `k`" in done.err


def test_strict_stops(velo, mode):
    source = velo.file("in.ndjson", '{"v":1}\n{"v":2}\nx\n{"v":3}\n')
    done = velo("run", "fns:sums", "-i", source, "--strict", "--mode", mode)
    assert (done.code, done.results) == (1, [1, 3, {"total": 3}])
    assert "in.ndjson:3: not JSON" in done.err
    assert "failed: 2 events in " in done.err


def test_limit(velo):
    source = velo.file("in.ndjson", ndjson(values(2000)))
    done = velo("run", "fns:echo", "-i", source, "--limit", 700)
    assert (done.code, len(done.results)) == (0, 700)


def test_stdin_to_stdout(velo, mode):
    done = velo("run", "fns:sums", "-i", "-", "--mode", mode, stdin=b'{"v":1}\n{"v":5}')
    assert done.results == [1, 6, {"total": 6}]
    done = velo("run", "fns:echo", "-i", "-", "--format", "csv", stdin=b"a,b\r\n1,x\r\n")
    assert done.results == [{"a": 1, "b": "x"}]


def test_empty_input(velo):
    assert velo("run", "fns:sums", "-i", "-").results == [{"total": 0}]
    done = velo("run", "fns:sums", "-i", "-", "-k", "k")
    assert (done.code, done.results) == (0, [])
    assert "0 events in " in done.err


def test_a_function_that_ends_early_ends_the_run(velo, mode):
    source = velo.file("in.ndjson", ndjson(values(5000)))
    done = velo("run", "fns:first", "-i", source, "--mode", mode)
    assert (done.code, done.results) == (0, [{"k": "key-0", "v": 0}])


@pytest.mark.parametrize("keyed", [(), ("-k", "k")], ids=["one", "keyed"])
def test_a_failing_function(velo, mode, keyed):
    source = velo.file("in.ndjson", ndjson([{"k": 1, "v": 4}, {"k": 1, "v": 0}]))
    done = velo("run", "fns:inverse", "-i", source, "--mode", mode, *keyed)
    assert done.code == 1
    assert [line["result"] if keyed else line for line in done.results] == [0.25]
    assert "`inverse` raised ZeroDivisionError" in done.err
    assert 'yield 1 / event["v"]' in done.err
    assert "velo/_" not in done.err
    assert "failed: 2 events in " in done.err
    if keyed:
        assert "in the stream of key 1" in done.err


def test_results_that_are_not_json(velo, mode):
    source = velo.file("in.ndjson", '{"v":3}\n')
    done = velo("run", "fns:odd", "-i", source, "--mode", mode)
    assert (done.code, done.results) == (1, [{"set": [3], "1": 2.5}])
    if mode == "inline":
        assert "`object` has no form in JSON" in done.err


def test_settings_reach_the_function(velo):
    source = velo.file("in.ndjson", ndjson(values(300, keys=100)))
    options = ("--max-concurrent", 10, "--timeout", 5, "--buffer", 2)
    done = velo("run", "fns:sums", "-i", source, "-k", "k", *options)
    assert done.code == 0
    # A key that was forced out starts again: there are more streams than keys.
    assert "300 streams, 600 results" in done.err


def test_nobody_reads_the_output(velo):
    process = velo.start("run", "fns:echo", "-i", "-")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(b'{"v":1}\n' * 50_000, timeout=HANG)
    assert process.returncode == 128 + signal.SIGPIPE
    assert err.startswith(b"stopped: ")
    assert b"Traceback" not in err
