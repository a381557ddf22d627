"""A checkpoint in an object store: it moves between machines, and one program has it."""

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import obstore
import pytest
from click.testing import CliRunner

from checkpoints import opened
from helpers import HANG, environment, until
from object_stores import Folder
from servers.server import free_port
from small_disk import mounted
from velo._checkpoint import commits, remote
from velo._checkpoint.address import address_of, below
from velo._checkpoint.bucket import Bucket
from velo._checkpoint.checkpoint import Checkpoint
from velo._checkpoint.commits import Commits
from velo._checkpoint.seal import Seal
from velo._core import dumps
from velo._diagnostics import failpoints
from velo.cli.command import velo
from velo.connect.errors import Superseded
from velo.errors import CheckpointError

KEY = "0123456789abcdef0123"


@pytest.fixture
def place(tmp_path):
    return Folder(tmp_path, patience=0.2)


def state(n, length=10):
    return dumps({"n": n, "text": "x" * length})


async def ticks(checkpoint, first, last, **settings):
    """Ticks, each of which changes its own key, and one that all have."""
    for epoch in range(first, last + 1):
        changes = {f"key-{epoch}": state(epoch), "all": state(epoch)}
        await checkpoint.commit(epoch, changes, {0: epoch}, {}, **settings)


def check(checkpoint, epoch):
    """It is at an epoch of `ticks`."""
    assert (checkpoint.epoch, checkpoint.positions) == (epoch, {0: epoch})
    keys = [f"key-{n}" for n in range(1, epoch + 2)]
    states = [state(n) for n in range(1, epoch + 1)]
    assert checkpoint.load([*keys, "all"]) == [*states, None, state(epoch)]


# Moving.


async def test_another_machine_goes_on_where_the_first_one_was(place):
    with opened(place.on("first")) as checkpoint:
        assert (checkpoint.epoch, checkpoint.is_empty) == (0, True)
        name = checkpoint.name
        await ticks(checkpoint, 1, 5)
    with opened(place.on("second")) as checkpoint:
        check(checkpoint, 5)
        assert checkpoint.name == name
        await ticks(checkpoint, 6, 7)
    with opened(place.on("first")) as checkpoint:
        check(checkpoint, 7)


async def test_keys_that_end_are_gone_on_another_machine_too(place):
    with opened(place.on("first")) as checkpoint:
        await checkpoint.commit(1, {"a": state(1), "b": state(1), "c": state(1)}, {0: 1}, {0: [3]})
        await checkpoint.commit(2, {"a": None, "b": False}, {}, {}, {"mark": 2})
    with opened(place.on("second")) as checkpoint:
        assert checkpoint.load(["a", "b", "c"]) == [None, False, state(1)]
        assert (checkpoint.positions, checkpoint.ahead, checkpoint.mark) == (
            *({0: 1}, {}),
            {"mark": 2},
        )


@pytest.fixture
def reads(monkeypatch):
    """The names of the objects that were read."""
    names = []
    for method in ("get", "read"):
        inner = getattr(Bucket, method)

        def noting(self, name, *args, inner=inner):
            names.append(name)
            return inner(self, name, *args)

        monkeypatch.setattr(Bucket, method, noting)
    return names


async def test_a_working_copy_that_is_up_to_date_is_not_fetched(place, reads):
    with opened(place.on()) as checkpoint:
        await ticks(checkpoint, 1, 5)
    reads.clear()
    with opened(place.on()) as checkpoint:
        check(checkpoint, 5)
    newest, claim = "commit-0000000000000006", "commit-0000000000000001"
    assert set(reads) == {newest, claim}


async def test_a_working_copy_that_is_behind_is_given_the_ticks_that_it_lacks(place, monkeypatch):
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 5)
    with opened(place.on("second")) as checkpoint:
        await ticks(checkpoint, 6, 8)
    monkeypatch.setattr(remote.Remote, "_anew", None)  # it is not called
    with opened(place.on("first")) as checkpoint:
        check(checkpoint, 8)


async def test_a_working_copy_that_was_changed_by_another_hand_is_fetched_again(place):
    with opened(place.on()) as checkpoint:
        await ticks(checkpoint, 1, 5)
    folder = address_of(place.on()).folder
    with opened(folder) as checkpoint:
        await checkpoint.commit(6, {"key-1": state(99)}, {0: 9}, {})
    with opened(place.on()) as checkpoint:
        check(checkpoint, 5)


@pytest.mark.parametrize("harm", ["truncate", "garbage", "remove"])
async def test_a_working_copy_that_is_torn_is_fetched_again(place, harm):
    with opened(place.on()) as checkpoint:
        await ticks(checkpoint, 1, 5)
    file = address_of(place.on()).folder / "state.sqlite"
    if harm == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "garbage":
        file.write_bytes(os.urandom(10_000))
    else:
        file.unlink()
    with opened(place.on()) as checkpoint:
        check(checkpoint, 5)


async def test_one_machine_has_one_working_copy_for_one_program(place):
    with opened(place.on()), pytest.raises(CheckpointError, match="in use by this process already"):
        Checkpoint.open(place.on(), "fraud")


# Any life.


class Died(Exception):
    """The program has died."""


class Life:
    """A checkpoint that is opened, dies and moves at random, beside what it has to hold."""

    def __init__(self, place, rng, monkeypatch):
        self.place = place
        self.rng = rng
        self.epochs = [{}]  # the states after each epoch
        self.died = None
        monkeypatch.setattr(failpoints, "hook", self.reached)
        self.next = None

    def reached(self, area, step):
        if (area, step) == self.next:
            self.died, self.next = (area, step), None
            raise Died

    async def run(self, steps):
        with opened(self.place.on(f"machine-{self.rng.randrange(3)}")) as checkpoint:
            self.check(checkpoint)
            for _ in range(steps):
                await self.step(checkpoint)
                self.check(checkpoint)
        if self.rng.random() < 0.3:
            with pytest.raises(Died):
                self.next = ("claim", self.rng.choice((1, 2)))
                Checkpoint.open(self.place.on(f"machine-{self.rng.randrange(3)}"), "fraud")

    async def step(self, checkpoint):
        rng = self.rng
        undone = None
        if checkpoint.undoable and rng.random() < 0.2:
            checkpoint.undo()
            undone = self.epochs.pop()
        now = dict(self.epochs[-1])
        changes = {}
        for key in rng.sample(range(12), rng.randrange(1, 5)):
            changes[key] = rng.choice((None, False, state(rng.randrange(10**6), 200)))
            now[key] = changes[key]
        epoch = checkpoint.epoch + 1
        if rng.random() < 0.1:
            self.next = ("upload", rng.choice((1, 2)))
        try:
            await checkpoint.commit(epoch, changes, {0: epoch}, {}, undoable=rng.random() < 0.7)
        except Died:
            if self.died == ("upload", 2):  # the store has it
                self.epochs.append(now)
            elif undone is not None:  # it still has that one
                self.epochs.append(undone)
            raise
        self.epochs.append(now)

    def check(self, checkpoint):
        now = self.epochs[-1]
        assert checkpoint.epoch == len(self.epochs) - 1
        assert checkpoint.load(list(range(12))) == [now.get(key) for key in range(12)]


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_becomes_of_programs_the_next_one_has_the_last_tick(
    place, small_bases, monkeypatch, seed
):
    rng = random.Random(seed)
    life = Life(place, rng, monkeypatch)
    for _ in range(12):
        with contextlib.suppress(Died):
            await life.run(rng.randrange(1, 12))
    assert len(life.epochs) > 10


# Bases.


@pytest.fixture
def small_bases(monkeypatch):
    monkeypatch.setattr(remote, "_LEAST", 1)


def has_written(checkpoint):
    """No base is being written."""
    writing = checkpoint._remote._writing
    return writing is None or writing.done()


async def test_a_base_takes_the_place_of_many_ticks(place, small_bases):
    size, epoch = 0, 0
    with opened(place.on("first")) as checkpoint:
        for epoch in range(1, 400):
            changes = {key: state(epoch, 200) for key in range(20)}
            await checkpoint.commit(epoch, changes, {0: epoch}, {})
            bases = [name for name in place.names() if name.startswith("base-")]
            if len(bases) == 1 and len(place.names()) < epoch // 2:
                size = len(place.names())
                break
    assert size, place.names()
    with opened(place.on("second")) as checkpoint:
        assert checkpoint.load(list(range(20))) == [state(epoch, 200)] * 20
        assert checkpoint.epoch == epoch


async def test_claims_stay_when_a_base_is_written(place, small_bases):
    for _ in range(3):
        with opened(place.on()) as checkpoint:
            await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 2)
    claims = {f"commit-{n:016}" for n in (1, 4, 7)}
    with opened(place.on()) as checkpoint:
        await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
        newest = place.names()[-1]
        async with asyncio.timeout(HANG):
            while newest in place.names():
                await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
    assert claims < set(place.names())


async def test_the_oldest_of_very_many_claims_go(place, small_bases, monkeypatch):
    monkeypatch.setattr(commits, "_CLAIMS", 3)
    for _ in range(6):
        with opened(place.on()) as checkpoint:
            await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
    oldest, kept = "commit-0000000000000001", "commit-0000000000000011"
    with opened(place.on()) as checkpoint:
        async with asyncio.timeout(HANG):
            while oldest in place.names():
                await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
        await until(lambda: has_written(checkpoint))
    assert kept in place.names()


async def test_a_base_that_cannot_be_written_holds_up_no_tick(
    place, small_bases, monkeypatch, caplog
):
    def fail(self, *_):
        raise CheckpointError("no room")

    monkeypatch.setattr(remote.Commits, "put_base", fail)
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
        await until(
            lambda: checkpoint._remote._writing is None or checkpoint._remote._writing.done()
        )
        await ticks(checkpoint, 4, 6)
    assert "no new base of the checkpoint" in caplog.text
    with opened(place.on("second")) as checkpoint:
        check(checkpoint, 6)


async def test_large_changes_are_objects_of_their_own(place, monkeypatch):
    monkeypatch.setattr(commits, "_LARGE", 1)
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 3)
    assert sum(name.startswith("data-") for name in place.names()) == 3
    with opened(place.on("second")) as checkpoint:
        check(checkpoint, 3)


# Going back.


@pytest.mark.parametrize("machine", ["first", "second"])
async def test_the_last_tick_can_be_undone_after_a_move(place, machine):
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 5, undoable=True)
    with opened(place.on(machine)) as checkpoint:
        check(checkpoint, 5)
        checkpoint.undo()
        check(checkpoint, 4)
        changes = {"key-5": state(5), "all": state(5)}
        await checkpoint.commit(5, changes, {0: 5}, {}, "again", undoable=True)
        await ticks(checkpoint, 6, 6, undoable=True)
    for machine in ("first", "second", "third"):
        with opened(place.on(machine)) as checkpoint:
            check(checkpoint, 6)
    with opened(place.on("third")) as checkpoint:
        checkpoint.undo()
        check(checkpoint, 5)
        assert checkpoint.mark == "again"


async def test_a_tick_that_was_undone_twice_counts_once(place):
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 2, undoable=True)
    for n in range(3):
        with opened(place.on(f"machine-{n}")) as checkpoint:
            checkpoint.undo()
            assert checkpoint.epoch == 1
            await checkpoint.commit(2, {f"other-{n}": state(n)}, {0: n}, {}, undoable=True)
    with opened(place.on("last")) as checkpoint:
        assert checkpoint.load(["other-0", "other-1", "other-2", "key-2"]) == [
            *(None, None, state(2)),
            None,
        ]


async def test_a_base_can_be_undone(place, tmp_path):
    with opened(tmp_path / "local") as checkpoint:
        await ticks(checkpoint, 1, 3, undoable=True)
    said = CliRunner().invoke(velo, ["checkpoint", "copy", str(tmp_path / "local"), place.on()])
    assert said.exit_code == 0, said.output
    with opened(place.on("first")) as checkpoint:
        check(checkpoint, 3)
        checkpoint.undo()
        check(checkpoint, 2)
        await ticks(checkpoint, 3, 4, undoable=True)
    with opened(place.on("second")) as checkpoint:
        check(checkpoint, 4)


# One program at a time.


async def test_a_program_that_was_taken_over_is_refused_and_changes_nothing(place):
    with opened(place.on("first")) as zombie:
        await ticks(zombie, 1, 3)
        with opened(place.on("second")) as owner:
            await ticks(owner, 4, 5)
            before = {name: (place.path / name).read_bytes() for name in place.names()}
            with pytest.raises(Superseded) as raised:
                await zombie.commit(4, {"key-4": state(99)}, {0: 99}, {})
            assert f"process {os.getpid()} on " in str(raised.value)
            assert f"has taken over the checkpoint `{place.url}`, at 20" in str(raised.value)
            with pytest.raises(Superseded):
                await zombie.commit(4, {"key-4": state(99)}, {0: 99}, {})
            with pytest.raises(Superseded):
                await zombie.check()
            # A base of the owner may come meanwhile.
            after = {name: (place.path / name).read_bytes() for name in place.names()}
            assert {name: after[name] for name in before} == before
            assert all(name.startswith("base-") for name in after.keys() - before)
            assert zombie.epoch == 3
            await owner.check()
            await ticks(owner, 6, 6)
    with opened(place.on("first")) as checkpoint:
        check(checkpoint, 6)


async def test_a_program_that_was_taken_over_removes_nothing_of_its_successor(place, small_bases):
    with opened(place.on("first")) as zombie:
        while not (zombie._remote._writing and zombie._remote._writing.done()):
            await ticks(zombie, zombie.epoch + 1, zombie.epoch + 1)
        with opened(place.on("second")) as owner:
            await ticks(owner, owner.epoch + 1, owner.epoch + 30)
            epoch = owner.epoch
            zombie._remote.commits.remove_useless()
    with opened(place.on("third")) as checkpoint:
        check(checkpoint, epoch)


async def test_of_two_claims_at_once_one_is_the_last(place):
    with opened(place.on("start")) as checkpoint:
        await ticks(checkpoint, 1, 1)
    found, barrier = [], threading.Barrier(4)

    def take_over(n):
        barrier.wait()
        found.append(Checkpoint.open(place.on(f"machine-{n}"), "fraud"))

    threads = [threading.Thread(target=take_over, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    numbers = [checkpoint._remote.commits._last.number for checkpoint in found]
    assert len(set(numbers)) == 4
    winners = 0
    for checkpoint in found:
        try:
            await ticks(checkpoint, 2, 2)
            winners += 1
        except Superseded:
            pass
    assert winners == 1
    for checkpoint in found:
        checkpoint.close()


async def test_a_claim_in_the_place_of_a_tick_that_was_removed_does_not_count(
    place, small_bases, monkeypatch
):
    """Between its look and its claim, the owner has gone on so far that the number is free."""
    with opened(place.on("first")) as owner:
        await ticks(owner, 1, 1)
        inner, free = Commits.claim, []

        async def go_on():
            await ticks(owner, owner.epoch + 1, owner.epoch + 1)
            while free[0] in place.names():
                await ticks(owner, owner.epoch + 1, owner.epoch + 1)

        def late(self, found, *args):
            free.append(f"commit-{found.number + 1:016}")
            thread = threading.Thread(target=lambda: asyncio.run(go_on()))
            thread.start()
            thread.join()
            return inner(self, found, *args)

        monkeypatch.setattr(Commits, "claim", late)
        with opened(place.on("second")) as checkpoint:
            check(checkpoint, owner.epoch)
            with pytest.raises(Superseded):
                await ticks(owner, owner.epoch + 1, owner.epoch + 1)
            await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)


async def test_a_store_that_overwrites_is_refused(place, monkeypatch):
    inner = obstore.put

    def overwriting(store, path, data, mode=None, **more):
        return inner(store, path, data, **more)

    monkeypatch.setattr(obstore, "put", overwriting)
    with pytest.raises(CheckpointError, match="use another store"):
        Checkpoint.open(place.on(), "fraud")


async def test_a_store_that_is_away_while_it_is_tested_is_asked_again(place, monkeypatch):
    inner, created = obstore.put, []

    def failing(store, path, data, **more):
        created.append(path)
        if len(created) == 2:  # whether it creates the claim again
            raise OSError("the store is away")
        return inner(store, path, data, **more)

    monkeypatch.setattr(obstore, "put", failing)
    with opened(place.on()) as checkpoint:
        assert created[0] == created[1] == created[2]
        await ticks(checkpoint, 1, 1)


async def test_an_answer_that_is_lost_does_not_double_a_tick(place, monkeypatch):
    inner, lost = obstore.put, []

    def losing(store, path, data, **more):
        inner(store, path, data, **more)
        if more.get("mode") == "create" and len(lost) < 3:
            lost.append(path)
            raise OSError("the answer was lost")

    with opened(place.on()) as checkpoint:
        monkeypatch.setattr(obstore, "put", losing)
        await ticks(checkpoint, 1, 5)
    assert len(lost) == 3
    with opened(place.on("second")) as checkpoint:
        check(checkpoint, 5)


async def test_another_function_takes_nothing_over(place):
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 2)
        with pytest.raises(CheckpointError, match=f"`{place.url}` belongs to the function `fraud`"):
            Checkpoint.open(place.on("second"), "another")
        await ticks(checkpoint, 3, 3)


# What is there.


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


# The event loop.


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
