"""A recording may come from anybody: nothing in it runs unless it is trusted."""

import contextlib
import os
import stat
import struct
import subprocess
import sys
import zlib

import pytest

from helpers import environment, write_script
from velo import _core
from velo.testing import ReplayDifference, load_recording, recordings, replay

MARK = "was_here"


class Evil:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def frame(payload):
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


def recording(path, *steps, function=(("made", "echo", None),), state=(), **head):
    head = {
        "function": [list(origin) for origin in function],
        "stream": "s",
        "state": state,
        "velo": "0",
        "python": "3",
        "when": "",
        "pid": 1,
        **head,
    }
    frames = [("head", head), *steps]
    path.write_bytes(b"velorec\x01" + b"".join(frame(_core.dumps(step)) for step in frames))
    return path


def velo(folder, *args):
    return subprocess.run(
        [sys.executable, "-m", "velo", *map(str, args)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


ECHO = """
    from velo import stream_fn

    @stream_fn
    async def echo(events):
        async for event in events:
            yield 1

    def plain(*arguments):
        import os
        os.mkdir("was_here")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_script(tmp_path, ECHO, "made.py")
    return tmp_path


@pytest.mark.parametrize("where", ["event", "result", "state", "in an array"])
def test_pickles_are_not_read(folder, where):
    pytest.importorskip("numpy")
    import numpy

    evil = Evil()
    if where == "in an array":
        evil = numpy.array([Evil()], dtype=object)
    steps = [] if where == "state" else [("result" if where == "result" else "event", [1, evil])]
    path = recording(folder / "evil.velorec", *steps, state=(evil,) if where == "state" else ())
    for read in (load_recording, replay):
        with pytest.raises(ValueError, match=r"pickled values.*`posix.mkdir`"):
            read(path)
    done = velo(folder, "replay", path)
    assert done.returncode == 1
    assert "`posix.mkdir`" in done.stderr
    assert "`--trust`" in done.stderr
    assert not (folder / MARK).exists()
    with contextlib.suppress(FileExistsError):
        load_recording(path, trust=True).steps  # noqa: B018
    assert (folder / MARK).exists()


def test_what_it_names_is_not_run(folder):
    inside = folder / "inside"
    inside.mkdir()
    (folder / "outside.py").write_text(f"import os; os.mkdir({MARK!r})\nasync def fn(e): yield\n")
    for origin in (
        ("json", "loads", None),
        ("made", "plain", str(folder / "made.py")),
        ("outside", "fn", str(folder / "outside.py")),
        ("outside", "fn", str(inside / ".." / "outside.py")),
    ):
        path = recording(inside / "evil.velorec", ("event", "{}"), function=[origin])
        done = velo(inside, "replay", path)
        assert done.returncode == 2, (origin, done.stdout)
        assert not (inside / MARK).exists()
    # What a trusted one names is.
    assert velo(inside, "replay", "--trust", path).returncode in (0, 1)
    assert (inside / MARK).exists()


def test_plain_values_need_no_trust(folder):
    values = [1, 2.5, "é", b"x", None, (1, 2), {1: {2}}, frozenset({3}), 10**40, 1j]
    steps = [step for value in values for step in (("event", value), ("result", 1))]
    path = recording(folder / "plain.velorec", *steps)
    assert load_recording(path).events == values
    done = velo(folder, "replay", path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "steps",
    [
        [("nonsense", 1)],
        [("lost", 1)],
        [("lost", ("nonsense", ""))],
        [(1, 2)],
        ["x"],
        [None],
    ],
)
def test_what_makes_no_sense_is_refused(folder, steps):
    path = recording(folder / "bad.velorec", *steps)
    with pytest.raises(ValueError, match="cannot be read"):
        load_recording(path)
    done = velo(folder, "replay", path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


@pytest.mark.parametrize("head", [{"function": []}, {"function": [[1, 2, 3]]}, {"state": 1}])
def test_a_beginning_that_makes_no_sense_is_refused(folder, head):
    path = folder / "bad.velorec"
    whole = {"function": [["made", "echo", None]], "state": (), **head}
    path.write_bytes(b"velorec\x01" + frame(_core.dumps(("head", whole))))
    with pytest.raises(ValueError, match="its beginning"):
        load_recording(path)


SEED = """
    from velo import stream_fn

    @stream_fn
    async def tags(events):
        seen = set()
        async for event in events:
            seen.add(event)
            yield list(seen)
"""
TEXTS = "".join(f'"{word}"\n' for word in ["red", "green", "blue", "white", "pink", "grey"])


@pytest.fixture
def tags(folder):
    write_script(folder, SEED, "tags.py")
    (folder / "in.ndjson").write_text(TEXTS)
    return folder


def without_seed(folder, *args, **env):
    return subprocess.run(
        [sys.executable, "-m", "velo", *map(str, args)],
        cwd=folder,
        env={**environment(), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_hash_seed_is_the_same_from_run_to_run(tags, mode, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    run = ("tags.py:tags", "-i", "in.ndjson", "--mode", mode, "-o")
    assert velo(tags, "record", *run, "out.ndjson", "--record", "kept").returncode == 0
    lines = (tags / "out.ndjson").read_text().splitlines(keepends=True)
    for _ in range(3):
        (tags / "cut.ndjson").write_text("".join(lines[:4]))
        done = velo(tags, "run", *run, "cut.ndjson", "--resume")
        assert done.returncode == 0, done.stderr
        assert (tags / "cut.ndjson").read_text() == "".join(lines)
        done = velo(tags, "replay", "kept")
        assert done.returncode == 0, done.stdout


def test_a_replay_has_the_seed_of_its_recordings(tags, mode):
    run = ("record", "tags.py:tags", "-i", "in.ndjson", "--mode", mode, "-o", "out.ndjson")
    for seed in ("1", "2"):
        folder = f"kept-{seed}"
        done = without_seed(tags, *run, "--record", folder, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        for env in ({}, {"PYTHONHASHSEED": "3"}):
            done = without_seed(tags, "replay", folder, **env)
            assert done.returncode == 0, done.stdout
    (path,) = recordings(tags / "kept-1")
    assert load_recording(path).head["hash_seed"] == "1"


def test_a_seed_that_is_not_known_is_told(tags):
    path = recording(
        tags / "old.velorec",
        *(step for text in ("a", "b") for step in (("event", text), ("result", ["x"]))),
        function=[("tags", "tags", str(tags / "tags.py"))],
    )
    with pytest.raises(ReplayDifference, match="the hash seed was random"):
        replay(path)


def test_recordings_are_their_users_alone(tags, mode):
    os.umask(0)
    try:
        done = velo(
            tags, "record", "tags.py:tags", "-i", "in.ndjson", "--mode", mode, "-o", "out.ndjson"
        )
    finally:
        os.umask(0o022)
    assert done.returncode == 0
    folder = tags / "recordings"
    (path,) = recordings(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
