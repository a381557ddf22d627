"""`velo run --resume`: whatever stops a run, the next one writes what is missing, and only that."""

import json
import random
import signal
import time

import pytest

from helpers import HANG, until_sync

COUNT = 6000


@pytest.fixture
def events(velo):
    dice = random.Random(3)
    lines = [json.dumps({"k": f"key-{dice.randrange(40)}", "v": n}) for n in range(COUNT)]
    middle = COUNT // 3
    velo.file("in-1.ndjson", "\n".join(lines[:middle]) + "\n")
    velo.file("in-2.ndjson", "\n".join(lines[middle:]) + "\n")
    velo.file(
        "slow.py",
        "import time\n"
        "from velo import stream_fn\n"
        "@stream_fn\n"
        "async def sums(events):\n"
        "    total = 0\n"
        "    async for event in events:\n"
        "        total += event['v']\n"
        "        time.sleep(0.0001)  # stands for work: the run is long enough to be stopped\n"
        "        yield {'total': total, 'seen': {event['k'], 'x'}}\n"
        "    yield 'the end'\n",
    )


def lines_by_key(path):
    """The lines of a file, those of each key in their order."""
    return sorted(path.read_bytes().splitlines(), key=lambda line: json.loads(line)["key"])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("keyed", [(), ("-k", "k")], ids=["one", "keyed"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_stopped_at_any_instant(velo, mode, keyed, number, events, long):
    options = ("run", "slow.py:sums", "-i", "in-*.ndjson", *keyed, "--mode", mode, "-o")
    assert velo(*options, "whole.ndjson").code == 0
    whole, out = velo.folder / "whole.ndjson", velo.folder / "out.ndjson"
    size = whole.stat().st_size
    dice = random.Random()
    stops = [dice.randrange(size) for _ in range(40 if long else 2)]
    for stop in sorted(stops):
        process = velo.start(*options, "out.ndjson", "--resume")
        # At some instant after it has written so much.
        until_sync(lambda: process.poll() is not None or written(out) >= stop)
        time.sleep(dice.random() * 0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=HANG)
        assert process.returncode in (-number, 128 + number, 0), err
    done = velo(*options, "out.ndjson", "--resume")
    assert done.code == 0, (stops, done.err)
    if keyed:
        assert lines_by_key(out) == lines_by_key(whole), stops
    else:
        assert out.read_bytes() == whole.read_bytes(), stops


def written(path):
    return path.stat().st_size if path.exists() else -1


@pytest.mark.parametrize("tail", [b"", b"1", b'{"k":1}', b"\0" * 5000, b"\0" * 3000 + b"\n\0"])
def test_what_a_crash_left_half_written_is_written_anew(velo, tail):
    velo.file("in.ndjson", "".join(f'{{"v":{n}}}\n' for n in range(10)))
    out = velo.folder / "out.ndjson"
    velo("run", "fns:sums", "-i", "in.ndjson", "-o", "out.ndjson")
    whole = out.read_bytes()
    cut = whole.index(b"\n", len(whole) // 2) + 1
    out.write_bytes(whole[:cut] + tail)
    done = velo("run", "fns:sums", "-i", "in.ndjson", "-o", "out.ndjson", "--resume")
    assert done.code == 0
    assert out.read_bytes() == whole
    again = velo("run", "fns:sums", "-i", "in.ndjson", "-o", "out.ndjson", "--resume")
    assert (again.code, out.read_bytes()) == (0, whole)


@pytest.mark.parametrize("name", ["in.ndjson", "in.csv"])
def test_keys_are_those_of_the_input_as_they_are_written(velo, mode, name):
    keys = ["0", "-0", "0.0", "-0.0", "1", "1.0", "1e5", "true", "false", "99999999999999999999"]
    if name == "in.csv":
        keys += ["007", "+1", "1_0"]
        text = "k,v\n" + "".join(f"{key},1\n" for key in keys) * 2
    else:
        keys += ['"0"', '"true"']
        text = "".join(f'{{"k":{key},"v":1}}\n' for key in keys) * 2
    velo.file(name, text)
    run = ("run", "fns:sums", "-i", name, "-k", "k", "--mode", mode, "-o", "out.ndjson", "--resume")
    out = velo.folder / "out.ndjson"
    assert velo(*run).code == 0
    whole = sorted(out.read_bytes().splitlines(keepends=True))
    assert len(whole) == 3 * len(keys)
    for left in (len(whole), len(whole) - 5, 3):
        out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:left]))
        done = velo(*run)
        assert (done.code, sorted(out.read_bytes().splitlines(keepends=True))) == (0, whole), (
            done.err
        )


def test_another_input_is_told(velo):
    velo.file("in.ndjson", '{"v":1}\n{"v":2}\n{"v":3}\n')
    run = ("run", "fns:sums", "-i", "in.ndjson", "-o", "out.ndjson", "--resume")
    assert velo(*run).code == 0
    before = (velo.folder / "out.ndjson").read_bytes()
    velo.file("in.ndjson", '{"v":1}\n{"v":5}\n{"v":3}\n')
    done = velo(*run)
    assert done.code == 1
    assert "result 2 is not the one that `out.ndjson` has: the function or the input" in done.err
    velo.file("in.ndjson", '{"v":1}\n')
    assert "result 2 is not the one" in velo(*run).err
    velo.file("in.ndjson", "")
    assert "result 1 is not the one" in velo(*run).err
    run = ("run", "fns:echo", *run[2:])
    velo.file("in.ndjson", "1\n3\n")
    assert "`out.ndjson` has 4 results, and only 2 came again" in velo(*run).err
    assert (velo.folder / "out.ndjson").read_bytes() == before


def test_what_is_no_output_stays_as_it_is(velo):
    velo.file("in.ndjson", '{"v":1}\n')
    for content in ("a,b\n1,2\n", '{"v":1}\n' * 3 + "x\n" * 3, '{"result":1}\n'):
        velo.file("out", content)
        keyed = ("-k", "v") if "result" in content else ()
        done = velo("run", "fns:echo", "-i", "in.ndjson", "-o", "out", "--resume", *keyed)
        assert done.code == 2
        assert "is none that this run would write" in done.err
        assert (velo.folder / "out").read_text() == content


def test_a_file_that_is_followed(velo):
    log, out = velo.folder / "in.ndjson", velo.folder / "out.ndjson"
    log.write_text('{"v":1}\n{"v":2}\n')
    run = ("run", "fns:sums", "-i", "in.ndjson", "-o", "out.ndjson", "--resume", "--follow")
    for expected in ("1\n3\n", "1\n3\n6\n"):
        process = velo.start(*run)
        until_sync(lambda: written(out) == len(expected))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=HANG)
        assert b"`--resume` goes on from here" in err
        # Its input has not ended, so nothing says that it has.
        assert out.read_text() == expected
        with open(log, "a") as file:
            file.write('{"v":3}\n')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-i", "-"), "which standard input cannot be"),
        (("-i", "in.ndjson", "-o", "-"), "goes on with a plain file"),
        (("-i", "in.ndjson", "-o", "out.gz"), "goes on with a plain file"),
        (("-i", "in.ndjson", "-o", "in.ndjson"), "is the input"),
        (("-i", "in.ndjson", "-i", "in.ndjson", "--follow"), "takes one file"),
    ],
)
def test_what_cannot_be_resumed(velo, options, message):
    velo.file("in.ndjson", "1\n")
    done = velo("run", "fns:echo", *options, "--resume", *(() if "-o" in options else ("-o", "o")))
    assert done.code == 2
    assert message in done.err
