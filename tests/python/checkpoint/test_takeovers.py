"""A checkpoint in an object store: one program has it, and the next one takes it over."""

import asyncio
import os
import threading

import obstore
import pytest

from checkpoints import opened
from helpers import HANG
from object_stores import check, state, ticks
from velo._checkpoint.checkpoint import Checkpoint
from velo._checkpoint.commits import Commits
from velo.connect.errors import Superseded
from velo.errors import CheckpointError


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
    with opened(place.on(patience=HANG)) as checkpoint:
        assert created[0] == created[1] == created[2]
        await ticks(checkpoint, 1, 1)


async def test_an_answer_that_is_lost_does_not_double_a_tick(place, monkeypatch):
    inner, lost = obstore.put, []

    def losing(store, path, data, **more):
        inner(store, path, data, **more)
        if more.get("mode") == "create" and len(lost) < 3:
            lost.append(path)
            raise OSError("the answer was lost")

    with opened(place.on(patience=HANG)) as checkpoint:
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
