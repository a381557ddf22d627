"""`velo record` and `velo replay`."""

import pytest

STEPS = """
    from velo import stream_fn

    @stream_fn
    async def sums(events):
        total = 0
        async for event in events:
            total += event["v"]
            yield {"total": total}
"""


@pytest.fixture
def recorded(velo, mode):
    """A folder of recordings of two streams by key, and the module that was recorded."""
    from helpers import write_script

    write_script(velo.folder, STEPS, "steps.py")
    velo.file("in.ndjson", "".join(f'{{"k":{n % 2},"v":{n}}}\n' for n in range(10)))
    run = ("record", "steps.py:sums", "-i", "in.ndjson", "-k", "k", "--mode", mode)
    done = velo(*run, "--record", "kept")
    assert done.code == 0
    assert done.by_key[0] == [{"total": total} for total in (0, 2, 6, 12, 20)]
    return velo.folder / "kept"


def test_the_same(velo, recorded):
    done = velo("replay", "kept")
    assert done.code == 0, done.err
    assert done.out.count("`sums`, 5 events, 5 results: the same\n") == 2
    assert done.out.endswith("2 streams, 0 different\n")


def test_of_many_only_those_that_differ_are_shown(velo, recorded):
    for number in range(20):
        for path in list(recorded.glob("sums-?.*")):
            path.with_name(f"copy-{number}-{path.name}").write_bytes(path.read_bytes())
    done = velo("replay", "kept")
    assert (done.code, done.out) == (0, "42 streams, 0 different\n")
    velo.file("other.py", STEPS.replace("\n    ", "\n").replace("total}", "total or None}"))
    done = velo("replay", "kept", "--function", "other.py:sums")
    assert done.code == 1
    assert done.out.count(": different") == 21
    assert ": the same" not in done.out


def test_what_was_yielded_is_shown_as_it_is(velo):
    velo.file("in.ndjson", '"at :100: [b]"\n')
    assert velo("record", "fns:echo", "-i", "in.ndjson", "--record", "kept").code == 0
    assert "yielded 'at :100: [b]'\n" in velo("replay", "kept", "--until", "1").out


def test_different(velo, recorded):
    script = velo.folder / "steps.py"
    script.write_text(script.read_text().replace("yield {", "yield total > 10 or {"))
    done = velo("replay", "kept")
    assert done.code == 1
    assert "2 streams, 2 different" in done.out
    assert "  >     4  {'k': 0, 'v': 6}\n        5  {'k': 0, 'v': 8}\n" in done.out
    assert "recorded: it yielded {'total': 12}\nnow:      it yielded True\n" in done.out
    assert velo("replay", "kept", "--function", "fns.py:echo").code == 1


def test_until(velo, recorded):
    paths = list(recorded.iterdir())
    shown = {path: velo("replay", path, "--until", "3") for path in paths}
    (path,) = (path for path in paths if "yielded {'total': 6}" in shown[path].out)
    done = shown[path]
    assert done.code == 0
    assert "at line 7" in done.out
    (line,) = (line for line in done.out.splitlines() if " total " in line)
    assert "6" in line
    assert "the function has ended" in velo("replay", path, "--until", "9").out
    assert (
        "`--until` is for one recording, and there are 2"
        in velo("replay", "kept", "--until", 1).err
    )


def test_what_is_no_recording(velo):
    velo.file("x.velorec", "hello")
    (velo.folder / "empty").mkdir()
    for path, code, message in (
        ("x.velorec", 1, "`x.velorec` cannot be read: it is no recording"),
        ("nope.velorec", 2, "cannot read `nope.velorec`: no such file"),
        ("empty", 2, "there is no recording in `empty`"),
    ):
        done = velo("replay", path)
        assert done.code == code
        assert message in done.err


def test_the_function_is_gone(velo, recorded):
    (velo.folder / "steps.py").unlink()
    done = velo("replay", "kept")
    assert done.code == 2
    assert (
        "module `steps` cannot be imported; give the function to replay: `--function`" in done.err
    )
