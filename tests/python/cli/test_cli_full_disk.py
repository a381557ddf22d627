"""`velo run --output` where the disk is full: what is there is whole, and `--resume` goes on."""

import json
import os
import resource

import pytest

from helpers import HANG, until_sync
from small_disk import enlarge, mounted

COUNT = 3000

FUNCTION = """
import asyncio, os
from velo import stream_fn

@stream_fn
async def sums(events):
    total = 0
    async for event in events:
        total += event["v"]
        while event["v"] >= 100 and not os.path.exists("go"):
            await asyncio.sleep(0.001)  # the rest comes once the disk has its size
        yield {"total": total, "of": event["k"]}
"""


@pytest.fixture
def whole(velo):
    """What a run writes that has room."""
    velo.file("slow.py", FUNCTION)
    lines = (json.dumps({"k": f"key-{n % 7}", "v": n}) + "\n" for n in range(COUNT))
    velo.file("in.ndjson", "".join(lines))
    go = velo.folder / "go"
    go.touch()
    assert velo("run", "slow.py:sums", "-i", "in.ndjson", "-o", "whole.ndjson").code == 0
    go.unlink()
    return (velo.folder / "whole.ndjson").read_bytes()


def size(path):
    return path.stat().st_size if path.exists() else 0


def fill_up(process, path, more=1000):
    """Lets the file of a run that is under way take so much more, and waits for its end."""
    until_sync(lambda: size(path) > 0 or process.poll() is not None)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size(path) + more, hard))
    (path.parent / "go").touch()
    _, err = process.communicate(timeout=HANG)
    return err.decode()


@pytest.mark.parametrize("keyed", [(), ("-k", "k")], ids=["one", "keyed"])
def test_what_is_there_is_whole_and_resume_goes_on(velo, mode, keyed, whole):
    out = velo.folder / "out.ndjson"
    run = ("run", "slow.py:sums", "-i", "in.ndjson", "-o", "out.ndjson", "--mode", mode, *keyed)
    process = velo.start(*run)
    err = fill_up(process, out)
    assert process.returncode == 1, err
    assert "cannot write to `out.ndjson`: file too large" in err
    assert "`ulimit -f`" in err
    assert "`--resume`" in err
    assert "Traceback" not in err
    left = out.read_bytes()
    assert left
    assert left.endswith(b"\n"), "no line is torn"
    assert all(json.loads(line) for line in left.splitlines())
    done = velo(*run, "--resume")
    assert done.code == 0, done.err
    assert out.read_bytes().startswith(left), "what was there stays"
    results = [json.loads(line) for line in out.read_bytes().splitlines()]
    if keyed:
        assert len(results) == COUNT
    else:
        assert out.read_bytes() == whole


def test_a_run_whose_input_is_slow_ends_as_soon_as_it_cannot_write(velo):
    """It does not wait for an event that may be long in coming."""
    velo.file("slow.py", FUNCTION)
    out = velo.folder / "out.ndjson"
    process = velo.start("run", "slow.py:sums", "-i", "-", "-o", "out.ndjson")
    process.stdin.write(b'{"k":1,"v":1}\n')
    process.stdin.flush()
    until_sync(lambda: size(out) > 0)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size(out), hard))
    process.stdin.write(b'{"k":1,"v":2}\n')
    process.stdin.flush()
    assert process.wait(HANG) == 1
    assert b"file too large" in process.stderr.read()
    assert out.read_bytes() == b'{"total":1,"of":1}\n'


@pytest.mark.parametrize("name", ["/dev/full", "full.ndjson.gz"])
def test_what_resume_cannot_go_on_with(velo, name):
    """A device, and a compressed file, which breaks off."""
    velo.file("in.ndjson", "".join(f'{{"v":"{os.urandom(40).hex()}"}}\n' for _ in range(20_000)))
    options = {}
    if name != "/dev/full":
        options["preexec_fn"] = lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)
        )
    process = velo.start("run", "fns:echo", "-i", "in.ndjson", "-o", name, **options)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert f"cannot write to `{name}`".encode() in err
    assert (b"no space left on device" if "dev" in name else b"file too large") in err
    assert b"--resume" not in err
    assert b"Traceback" not in err


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk")
def test_a_small_disk(velo, whole):
    """A real one, of 64 KiB."""
    (velo.folder / "go").touch()
    with mounted(velo.folder / "disk", "64k") as disk:
        run = ("run", "slow.py:sums", "-i", "in.ndjson", "-o", "disk/out.ndjson")
        done = velo(*run)
        assert done.code == 1
        assert "cannot write to `disk/out.ndjson`: no space left on device" in done.err
        assert "make room on its disk" in done.err
        left = (disk / "out.ndjson").read_bytes()
        assert whole.startswith(left)
        assert left.endswith(b"\n")
        enlarge(disk, "4m")
        assert velo(*run, "--resume").code == 0
        assert (disk / "out.ndjson").read_bytes() == whole
