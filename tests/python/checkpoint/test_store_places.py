"""A checkpoint in an object store: stores that are slow, full, away, or none."""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import obstore
import pytest

from checkpoints import opened
from helpers import HANG, environment, until
from object_stores import state, ticks
from servers.server import free_port
from small_disk import mounted
from velo._checkpoint import bucket
from velo._checkpoint.address import address_of, below
from velo._checkpoint.checkpoint import Checkpoint
from velo._core import dumps
from velo.errors import CheckpointError


async def test_a_slow_store_does_not_block_the_event_loop(place, monkeypatch):
    inner, goes_on, waits = obstore.put, threading.Event(), threading.Event()

    def slow(*args, **more):
        waits.set()
        assert goes_on.wait(HANG)
        return inner(*args, **more)

    with opened(place.on()) as checkpoint:
        monkeypatch.setattr(obstore, "put", slow)
        tick = asyncio.create_task(ticks(checkpoint, 1, 1))
        await until(waits.is_set)
        assert checkpoint.load(["key-1"]) == [state(1)]  # what the next tick stores is known
        goes_on.set()
        await tick


# Places that cannot be used.


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host/fraud", "http:// is none"),
        ("kafka://host/fraud", "kafka:// is none"),
        ("s3:///fraud", "s3://BUCKET/PREFIX"),
        ("file://host/fraud", "file:///FOLDER"),
        ("s3://me:secret@bucket/fraud", "has no login"),
        ("s3://bucket/fraud?colour=red", "no setting `colour`"),
        ("s3://bucket/fraud?patience=long", "setting `patience`"),
        ("s3://bucket/fraud?patience=nan", "setting `patience`"),
        ("s3://bucket/fraud?patience=-1", "setting `patience`"),
        ("s3://bucket/fraud?secret", "`name=value`"),
    ],
)
def test_a_url_that_does_not_fit_is_told(url, said):
    with pytest.raises(ValueError, match=said) as raised:
        Checkpoint.open(url, "fraud")
    assert "secret" not in str(raised.value)


AS_NOBODY = """
import os, sys
from velo._checkpoint import remote
from velo._checkpoint.checkpoint import Checkpoint
from velo.errors import CheckpointError
os.setgid(65534)
os.setuid(65534)
for url in sys.argv[1:]:
    try:
        Checkpoint.open(url, "fraud")
    except CheckpointError as error:
        print(error)
"""


@pytest.fixture
def open_to_all():
    """A folder that other users may look into; pytest closes its own ones to them."""
    with tempfile.TemporaryDirectory(prefix="velo-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_to_is_named_at_once(open_to_all):
    for name, mode in (("read-only", 0o755), ("unreadable", 0o700), ("cache", 0o777)):
        (open_to_all / name).mkdir()
        os.chmod(open_to_all / name, mode)
    cache = f"cache={open_to_all / 'cache'}&patience=1000"
    places = [(open_to_all / name).as_uri() for name in ("read-only", "unreadable", "new")]
    command = [sys.executable, "-c", AS_NOBODY, *(f"{place}?{cache}" for place in places)]
    said = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=HANG
    ).stdout.splitlines()
    assert len(said) == 3
    for place, line in zip(places, said, strict=True):
        assert f" the checkpoint `{place}`: " in line
        assert line.endswith("give this user the right to, or name a folder that it may write to")


async def test_a_full_disk_is_named_and_the_last_tick_is_there(tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk:
        url = f"{(disk / 'fraud').as_uri()}?cache={tmp_path / 'cache'}&patience=1000"
        with opened(url) as checkpoint, pytest.raises(CheckpointError, match="free some of the d"):
            for epoch in range(1, 100):
                text = os.urandom(25_000).hex()
                await checkpoint.commit(epoch, {epoch: dumps({"text": text})}, {0: epoch}, {})
        last = checkpoint.epoch
        assert last > 2
        shutil.copytree(disk / "fraud", tmp_path / "copy")
    with opened(f"{(tmp_path / 'copy').as_uri()}?cache={tmp_path / 'other'}") as checkpoint:
        assert checkpoint.epoch == last


async def test_a_store_that_has_lost_everything_is_told(place):
    with opened(place.on()) as checkpoint:
        await ticks(checkpoint, 1, 2)
    shutil.rmtree(place.path)
    with pytest.raises(CheckpointError, match="this machine has a working copy.*mounted; to begin"):
        Checkpoint.open(place.on(), "fraud")
    shutil.rmtree(address_of(place.on()).folder)
    with opened(place.on()) as checkpoint:
        assert checkpoint.epoch == 0


def test_a_store_that_does_not_answer_is_named_after_a_while(tmp_path, caplog, monkeypatch):
    # The patience of 0.3 s is over between the second look at the clock and the third one.
    looks = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: next(looks) * 0.2)
    monkeypatch.setattr(bucket, "time", clock)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    settings = f"endpoint=http://127.0.0.1:{free_port()}&region=x&patience=0.3&cache={tmp_path}"
    with pytest.raises(CheckpointError, match="cannot list the checkpoint `s3://bucket/fraud`"):
        Checkpoint.open(f"s3://bucket/fraud?{settings}", "fraud")
    assert caplog.text.count("trying again for 0.3 s") == 1
    assert "hunter2" not in caplog.text


def test_the_working_copy_is_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VELO_CHECKPOINT_CACHE", raising=False)
    first, second = (address_of(f"s3://bucket/{name}").folder for name in ("a", "b"))
    assert first.parent == second.parent == tmp_path / "velo" / "checkpoints"
    assert first != second
    assert address_of("s3://bucket/a?region=x").folder == first
    monkeypatch.setenv("VELO_CHECKPOINT_CACHE", str(tmp_path / "other"))
    assert address_of("s3://bucket/a").folder == tmp_path / "other" / first.name


def test_a_shard_is_below_its_checkpoint():
    assert below("s3://bucket/fraud?region=x", "payments/3") == (
        "s3://bucket/fraud/payments%2F3?region=x"
    )
    assert below("file:///mnt/fraud/", "3") == "file:///mnt/fraud/3"
