"""A checkpoint in an object store: what is not what was written, or has another key, is refused."""

import shutil
import threading

import pytest

from checkpoints import opened
from helpers import until
from object_stores import check, ticks
from velo._checkpoint import commits, remote
from velo._checkpoint.address import address_of
from velo._checkpoint.checkpoint import Checkpoint
from velo._checkpoint.seal import Seal
from velo._core import dumps
from velo.errors import CheckpointError

KEY = "0123456789abcdef0123"


async def test_objects_of_another_kind_are_refused(place):
    place.path.mkdir(parents=True)
    for name in ("notes.txt", "a.csv"):
        (place.path / name).write_text("text")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*`a.csv` and 1 more"):
        Checkpoint.open(place.on(), "fraud")
    assert place.names() == ["a.csv", "notes.txt"]


HARM = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-3],
    "longer": lambda data: data + b"x",
    "no payload": lambda data: data[: data.index(b"\n")],
    "payload": lambda data: data[:-10] + bytes([data[-10] ^ 1]) + data[-9:],
    "about": lambda data: data.replace(b'"kind"', b'"kine"', 1),
    "first line": lambda data: data.replace(b" 1 ", b" x ", 1),
    "digest": lambda data: data.replace(b"sha256 ", b"sha256 \xff", 1),
    "foreign": lambda data: b"text of another program\n" * 20,
    "random": lambda data: bytes(range(256)) * 4,
    "newer": lambda data: data.replace(b"checkpoint 1 ", b"checkpoint 2 ", 1),
}


@pytest.fixture
async def written(place, small_bases, monkeypatch):
    """A checkpoint with a base, ticks with objects of their own, and small ones."""
    with opened(place.on("first")) as checkpoint:
        while not any(name.startswith("base-") for name in place.names()):
            await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
        await until(
            lambda: checkpoint._remote._writing is None or checkpoint._remote._writing.done()
        )
        monkeypatch.setattr(remote, "_LEAST", 10**9)
        await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
        monkeypatch.setattr(commits, "_LARGE", 1)
        await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
        monkeypatch.setattr(commits, "_LARGE", 10**9)
        await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 2)
    return place


@pytest.mark.parametrize("which", ["commit", "base", "data", "earlier"])
@pytest.mark.parametrize("harm", HARM)
async def test_an_object_that_is_not_what_was_written_is_named(written, which, harm):
    numbered = [name for name in written.names() if name.startswith("commit-")]
    name = numbered[-2] if which == "earlier" else written.file(f"{which}-").name
    file = written.path / name
    file.write_bytes(HARM[harm](file.read_bytes()))
    before = written.names()
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(written.on("second"), "fraud")
    message = str(raised.value)
    assert f"`{name}`" in message
    assert written.url in message
    assert written.names() == before  # nothing is claimed
    folder = address_of(written.on("second")).folder
    assert not (folder / "state.sqlite").exists() or which not in ("base", "commit")


@pytest.mark.parametrize("which", ["base", "data", "earlier"])
async def test_an_object_that_is_missing_is_told(written, which):
    numbered = [name for name in written.names() if name.startswith("commit-")]
    name = numbered[-2] if which == "earlier" else written.file(f"{which}-").name
    (written.path / name).unlink()
    with pytest.raises(CheckpointError, match="is torn.*missing"):
        Checkpoint.open(written.on("second"), "fraud")


async def test_a_newer_format_is_told(written):
    file = written.file("commit-")
    file.write_bytes(HARM["newer"](file.read_bytes()))
    with pytest.raises(CheckpointError, match="by a newer velo, in format 2; .*update velo"):
        Checkpoint.open(written.on("second"), "fraud")


async def test_an_object_under_another_name_is_told(written):
    numbered = [name for name in written.names() if name.startswith("commit-")]
    shutil.copy(written.path / numbered[-1], written.path / numbered[-2])
    with pytest.raises(CheckpointError, match=f"it was written as `{numbered[-1]}`"):
        Checkpoint.open(written.on("second"), "fraud")


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"kind": "tick"},
        {"claims": 3},
        {"number": 3},
        {"base": "../other"},
        {"data": 7},
    ],
)
async def test_a_commit_that_says_what_no_commit_says_is_named(written, about):
    name = written.file("commit-").name
    seal = Seal(None, written.url)
    told, payload = seal.opened(name, (written.path / name).read_bytes())
    told = {key: told[key] for key in told if key not in ("name", "bytes", "sha256")}
    told = {**told, **about} if about else {}
    (written.path / name).write_bytes(seal.closed(name, told, payload))
    if about == {"kind": "tick"}:  # as it was
        return Checkpoint.open(written.on("second"), "fraud").close()
    with pytest.raises(CheckpointError, match=f"is torn: `{name}`: it is no commit"):
        Checkpoint.open(written.on("second"), "fraud")


# A key.


@pytest.fixture
def keyed(place, tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "other").write_text(KEY[::-1])
    return lambda machine, key="key": place.on(machine, key_file=tmp_path / key)


async def test_with_a_key_objects_are_signed(place, keyed):
    with opened(keyed("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
    with opened(keyed("second")) as checkpoint:
        check(checkpoint, 3)
    for name in place.names():
        assert (place.path / name).read_bytes().startswith(b"velo-checkpoint 1 hmac-sha256 ")


async def test_another_key_is_refused(keyed):
    with opened(keyed("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
    with pytest.raises(CheckpointError, match="was signed with another key, or changed since"):
        Checkpoint.open(keyed("second", "other"), "fraud")


async def test_without_the_key_a_signed_checkpoint_is_refused(place, keyed):
    with opened(keyed("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
    with pytest.raises(CheckpointError, match=r"is signed with a key; give it, by `VELO_CHECKPOI"):
        Checkpoint.open(place.on("second"), "fraud")


async def test_with_a_key_objects_that_are_not_signed_are_refused(place, keyed):
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
    with pytest.raises(CheckpointError, match="is not signed, and a key is given"):
        Checkpoint.open(keyed("second"), "fraud")


async def test_the_key_comes_from_the_environment(place, keyed, monkeypatch, tmp_path):
    monkeypatch.setenv("VELO_CHECKPOINT_KEY", KEY)
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
    monkeypatch.delenv("VELO_CHECKPOINT_KEY")
    with opened(keyed("second")) as checkpoint:
        check(checkpoint, 3)
    monkeypatch.setenv("VELO_CHECKPOINT_KEY_FILE", str(tmp_path / "key"))
    with opened(place.on("third")) as checkpoint:
        check(checkpoint, 3)


def test_a_key_that_can_be_guessed_is_refused(place, tmp_path, monkeypatch):
    (tmp_path / "short").write_text("secret")
    with pytest.raises(ValueError, match="short` is the key of a checkpoint, and has 6 bytes"):
        Checkpoint.open(place.on(key_file=tmp_path / "short"), "fraud")
    with pytest.raises(ValueError, match=r"none`, cannot be read: no such file"):
        Checkpoint.open(place.on(key_file=tmp_path / "none"), "fraud")
    monkeypatch.setenv("VELO_CHECKPOINT_KEY", "secret")
    with pytest.raises(ValueError, match="`VELO_CHECKPOINT_KEY` is the key"):
        Checkpoint.open(place.on(), "fraud")


async def test_a_state_with_a_pickle_is_refused_unless_it_is_trusted(place):
    pickled = dumps({"value": threading.Thread})
    with opened(place.on("first"), trusted=True) as checkpoint:
        await checkpoint.commit(1, {"a": pickled}, {}, {})
    with (
        opened(place.on("second")) as checkpoint,
        pytest.raises(CheckpointError, match="holds a pickle, which runs code"),
    ):
        checkpoint.load(["a"])
    with opened(place.on("third"), trusted=True) as checkpoint:
        assert checkpoint.load(["a"]) == [pickled]
