"""A checkpoint in an object store: it moves between machines, and back."""

import asyncio
import contextlib
import itertools
import os
import random

import pytest
from click.testing import CliRunner

from checkpoints import opened
from helpers import HANG, until
from object_stores import check, has_written, state, ticks
from velo._checkpoint import commits, remote
from velo._checkpoint.address import address_of
from velo._checkpoint.bucket import Bucket
from velo._checkpoint.checkpoint import Checkpoint
from velo._checkpoint.seal import Seal
from velo._diagnostics import failpoints
from velo.cli.command import velo
from velo.errors import CheckpointError

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


def flip_a_bit(place, text):
    """Have the disk of a machine change its working copy."""
    file = address_of(place.on("first")).folder / "state.sqlite"
    data = bytearray(file.read_bytes())
    data[data.index(text) + 3] ^= 1
    file.write_bytes(data)


async def test_a_state_of_a_working_copy_that_has_changed_is_told_and_fetched_again(place):
    with opened(place.on("first")) as checkpoint:
        await checkpoint.commit(1, {"kept": state(1, 200), "other": state(2)}, {0: 1}, {})
    flip_a_bit(place, b"x" * 100)
    with (
        opened(place.on("first")) as checkpoint,
        pytest.raises(CheckpointError, match="the working copy .*kept.*; start again"),
    ):
        checkpoint.load(["kept"])
    with opened(place.on("first")) as checkpoint:
        assert checkpoint.load(["kept", "other"]) == [state(1, 200), state(2)]


async def test_positions_of_a_working_copy_that_have_changed_are_fetched_again(place):
    with opened(place.on("first")) as checkpoint:
        await checkpoint.commit(1, {}, {"the only partition": 1}, {})
    flip_a_bit(place, b"the only partition")
    with opened(place.on("first")) as checkpoint:
        assert checkpoint.positions == {"the only partition": 1}


async def test_a_working_copy_that_has_changed_becomes_no_base(place, monkeypatch, caplog):
    with opened(place.on("first")) as checkpoint:
        await checkpoint.commit(1, {"kept": state(1, 200)}, {0: 1}, {})
    flip_a_bit(place, b"x" * 100)
    before = set(place.names())
    monkeypatch.setattr(remote, "_LEAST", 1)
    with opened(place.on("first")) as checkpoint:
        for epoch in (2, 3, 4):
            await ticks(checkpoint, epoch, epoch)
            await until(lambda: has_written(checkpoint))
    assert "no new base of the checkpoint" in caplog.text
    assert "a state is not what was written; start again" in caplog.text
    assert before < set(place.names())
    assert not [name for name in place.names() if name.startswith("base-")]
    for machine in ("second", "first"):
        with opened(place.on(machine)) as checkpoint:
            assert checkpoint.load(["kept", "key-4"]) == [state(1, 200), state(4)]


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


async def test_a_base_takes_the_place_of_many_ticks(place, small_bases):
    with opened(place.on("first")) as checkpoint:
        async with asyncio.timeout(HANG):
            for epoch in itertools.count(1):
                changes = {key: state(epoch, 200) for key in range(20)}
                await checkpoint.commit(epoch, changes, {0: epoch}, {})
                if len(bases_of(place)) == 1 and len(place.names()) < epoch // 2:
                    break
    with opened(place.on("second")) as checkpoint:
        assert checkpoint.load(list(range(20))) == [state(epoch, 200)] * 20
        assert checkpoint.epoch == epoch


def bases_of(place):
    return [name for name in place.names() if name.startswith("base-")]


def newest_of(place):
    """The newest commit."""
    with contextlib.closing(Bucket(address_of(place.on()))) as bucket:
        return commits.Commits(bucket, Seal(None, bucket.url)).newest()


async def one_tick(place, machine="first"):
    """A run that ends behind its first tick, once a base is written, which no tick names."""
    with opened(place.on(machine)) as checkpoint:
        await ticks(checkpoint, checkpoint.epoch + 1, checkpoint.epoch + 1)
        await until(lambda: has_written(checkpoint))
        return checkpoint.epoch


async def test_a_base_that_no_tick_has_named_is_named_by_the_next_run(place, small_bases):
    await one_tick(place)
    (base,) = bases_of(place)
    assert newest_of(place).base is None
    with opened(place.on("second")) as checkpoint:
        await ticks(checkpoint, 2, 2)
    assert newest_of(place).base == base
    with opened(place.on("third")) as checkpoint:
        check(checkpoint, 2)


async def test_the_objects_of_many_runs_of_one_tick_are_few(place, small_bases):
    most = 0
    for number in range(30):
        await one_tick(place, f"machine-{number % 2}")
        claims = number + 1
        most = max(most, len(place.names()) - claims)
    assert most < 15, place.names()
    with opened(place.on("another")) as checkpoint:
        check(checkpoint, 30)


async def test_a_run_begins_with_a_base_that_is_due(place, monkeypatch):
    """Its first tick may be its last one: then there is no time for a base behind it."""
    with opened(place.on()) as checkpoint:
        await ticks(checkpoint, 1, 5)
    monkeypatch.setattr(remote, "_LEAST", 1)
    with opened(place.on()) as checkpoint:
        await until(lambda: has_written(checkpoint))
        (base,) = bases_of(place)
        await ticks(checkpoint, 6, 6)
    assert newest_of(place).base == base


async def test_what_a_run_has_left_to_remove_is_removed_by_the_next_one(
    place, small_bases, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(commits.Commits, "remove_useless", lambda self: None)
        await one_tick(place)
        await one_tick(place)
        assert newest_of(place).behind == 2
    useless = "commit-0000000000000002"
    assert useless in place.names()
    with opened(place.on()) as checkpoint:
        await until(lambda: useless not in place.names())
        check(checkpoint, 2)


def under(name, new, data):
    """A base as it would be if it had been written under another name."""
    seal = Seal(None, "here")
    told, payload = seal.opened(name, data)
    return new, seal.closed(new, {"kind": told["kind"]}, payload)


NONCE = "0123456789abcdef"
UNFIT = {
    "torn": lambda name, data: (name, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]),
    "cut off": lambda name, data: (name, data[: len(data) // 2]),
    "empty": lambda name, data: (name, b""),
    "zeros": lambda name, data: (name, bytes(len(data))),
    "of no name": lambda name, data: ("base-of-others", data),
    # As `velo checkpoint set` leaves it where a program goes on meanwhile.
    "of another tick": lambda name, data: under(name, f"{name[:-16]}{NONCE}", data),
    "of a claim": lambda name, data: under(name, f"base-{1:016}-{NONCE}", data),
}


@pytest.mark.parametrize("how", UNFIT)
async def test_a_base_that_no_tick_has_named_and_does_not_fit_is_not_used(
    place, small_bases, monkeypatch, how
):
    await one_tick(place)
    (base,) = bases_of(place)
    monkeypatch.setattr(remote, "_LEAST", 10**9)
    name, data = UNFIT[how](base, (place.path / base).read_bytes())
    (place.path / base).unlink()
    (place.path / name).write_bytes(data)
    with opened(place.on("second")) as checkpoint:
        await ticks(checkpoint, 2, 3)
    assert newest_of(place).base is None
    with opened(place.on("third")) as checkpoint:
        check(checkpoint, 3)


@pytest.mark.parametrize("machine", ["first", "second"])
async def test_a_tick_can_be_undone_behind_a_base_that_the_run_before_has_left(
    place, small_bases, machine
):
    with opened(place.on("first")) as checkpoint:
        await ticks(checkpoint, 1, 2, undoable=True)
        await until(lambda: has_written(checkpoint))
    with opened(place.on(machine)) as checkpoint:
        checkpoint.undo()
        await checkpoint.commit(2, {"again": state(2)}, {0: 9}, {}, undoable=True)
    assert newest_of(place).base is not None
    for machine in ("first", "third"):
        with opened(place.on(machine)) as checkpoint:
            assert checkpoint.load(["key-1", "key-2", "again"]) == [state(1), None, state(2)]
            assert checkpoint.positions == {0: 9}


async def test_objects_of_others_beside_a_checkpoint_stay(place, small_bases):
    await one_tick(place)
    others = ["base-of-others", "commit-message", "data-1", "notes.txt"]
    for name in others:
        (place.path / name).write_text("text")
    for _ in range(2):
        await one_tick(place)
    assert set(others) < set(place.names())


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
