"""What a checkpoint keeps, tick by tick, and gives to the run that follows."""

import asyncio
import contextlib
import sqlite3
import threading

import pytest

from helpers import HANG, until
from velo._checkpoint import checkpoint as module
from velo._checkpoint.checkpoint import Checkpoint
from velo._checkpoint.store import Store
from velo._core import dumps, loads
from velo.errors import CheckpointError


def state(**values):
    return dumps(values)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fraud"


@pytest.fixture
def opened(path):
    """Opens the checkpoint again and again, each time after closing it."""
    last = []

    def reopen(function="fraud", **settings):
        while last:
            last.pop().close()
        last.append(Checkpoint.open(path, function, **settings))
        return last[-1]

    yield reopen
    while last:
        last.pop().close()


async def test_a_new_one_is_empty(opened):
    checkpoint = opened()
    assert (checkpoint.epoch, checkpoint.made) == (0, None)
    assert (checkpoint.positions, checkpoint.ahead, checkpoint.mark) == ({}, {}, None)
    assert checkpoint.is_empty
    assert checkpoint.load(["a", ("b", 1)]) == [None, None]


async def test_what_was_committed_is_there_after_a_restart(opened):
    checkpoint = opened()
    changes = {"a": state(n=1), ("b", 2): state(n=2), "over": False}
    await checkpoint.commit(1, changes, {("t", 0): 17, ("t", 1): "x-1"}, {("t", 0): [19, 21]}, 300)
    for found in (lambda: checkpoint, opened):
        again = found()
        assert not again.is_empty
        assert again.load(["a", ("b", 2.0), "over", "c"]) == [state(n=1), state(n=2), False, None]
        assert again.epoch == 1
        assert again.made is not None
        assert again.positions == {("t", 0): 17, ("t", 1): "x-1"}
        assert again.ahead == {("t", 0): [19, 21]}
        assert again.mark == 300


async def test_each_tick_adds_to_the_one_before(opened):
    checkpoint = opened()
    await checkpoint.commit(1, {"a": state(n=1), "b": state(n=1)}, {0: 10, 1: 20}, {0: [12]})
    await checkpoint.commit(2, {"b": state(n=2), "c": state(n=2)}, {1: 25}, {})
    await checkpoint.commit(3, {"a": None, "b": False}, {}, {1: [30]}, "mark")
    again = opened()
    assert again.load(["a", "b", "c"]) == [None, False, state(n=2)]
    assert again.positions == {0: 10, 1: 25}
    assert again.ahead == {1: [30]}
    assert (again.epoch, again.mark) == (3, "mark")


async def test_it_keeps_its_name(opened, tmp_path):
    name = opened().name
    assert name.startswith("fraud-")
    assert opened().name == name
    other = Checkpoint.open(tmp_path / "other", "fraud")
    assert other.name != name
    other.close()


async def test_some_keys_that_have_a_state(opened, monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    checkpoint = opened(ttl=60)
    assert checkpoint.some_live(10) == []
    await checkpoint.commit(1, {"old": state(n=1), 0: False}, {}, {})
    now += 61
    await checkpoint.commit(2, {("a", 1): state(n=1), "b": state(n=1), "c": False}, {}, {})
    assert set(checkpoint.some_live(10)) == {("a", 1), "b"}
    assert len(checkpoint.some_live(1)) == 1
    await checkpoint.commit(3, {("a", 1): None, "b": None}, {}, {})
    assert checkpoint.some_live(10) == []


async def test_keys_that_are_equal_are_one(opened):
    checkpoint = opened()
    await checkpoint.commit(1, {1: state(n=1)}, {}, {})
    await checkpoint.commit(2, {True: state(n=2)}, {}, {})
    assert opened().load([1.0]) == [state(n=2)]


async def test_epochs_follow_each_other(opened):
    checkpoint = opened()
    with pytest.raises(ValueError, match="epoch 2 does not follow epoch 0"):
        await checkpoint.commit(2, {}, {}, {})


@pytest.mark.parametrize("reopens", [False, True])
async def test_an_epoch_can_be_undone(opened, reopens):
    checkpoint = opened()
    before = {
        "same": state(n=1),
        "changed": state(n=1),
        "ended": state(n=1),
        "finished": state(n=1),
    }
    await checkpoint.commit(1, before, {0: 10}, {0: [12]}, "one", undoable=True)
    changes = {"changed": state(n=2), "ended": None, "finished": False, "new": state(n=2)}
    await checkpoint.commit(2, {**changes, "never": None}, {0: 20, 1: 5}, {}, "two", undoable=True)
    if reopens:
        checkpoint = opened()
    assert checkpoint.undoable
    checkpoint.undo()
    for found in (lambda: checkpoint, opened):
        again = found()
        assert again.load([*before, "new", "never"]) == [*before.values(), None, None]
        assert (again.epoch, again.positions, again.ahead) == (1, {0: 10}, {0: [12]})
        assert again.mark == "one"
        assert not again.undoable
        with pytest.raises(ValueError, match="epoch 1 cannot be undone"):
            again.undo()


async def test_the_first_epoch_can_be_undone(opened):
    checkpoint = opened()
    await checkpoint.commit(1, {"a": state(n=1)}, {0: 10}, {}, undoable=True)
    checkpoint.undo()
    assert (checkpoint.epoch, checkpoint.positions) == (0, {})
    assert checkpoint.is_empty
    await checkpoint.commit(1, {"b": state(n=1)}, {0: 10}, {}, undoable=True)
    assert opened().load(["a", "b"]) == [None, state(n=1)]


async def test_an_epoch_that_keeps_nothing_cannot_be_undone(opened):
    checkpoint = opened()
    await checkpoint.commit(1, {"a": state(n=1)}, {}, {}, undoable=True)
    await checkpoint.commit(2, {"a": state(n=2)}, {}, {})
    assert not checkpoint.undoable
    with pytest.raises(ValueError, match="epoch 2 cannot be undone"):
        checkpoint.undo()


async def test_many_keys_in_one_tick(opened):
    checkpoint = opened()
    keys = [f"key-{n}" for n in range(3456)]
    await checkpoint.commit(1, dict.fromkeys(keys, state(n=1)), {}, {}, undoable=True)
    changes = {key: None if n % 3 else state(n=2) for n, key in enumerate(keys)}
    await checkpoint.commit(2, changes, {}, {}, undoable=True)
    assert checkpoint.load(keys) == list(changes.values())
    checkpoint.undo()
    assert opened().load(keys) == [state(n=1)] * len(keys)


async def test_load_knows_what_is_being_committed(opened, monkeypatch):
    checkpoint = opened()
    await checkpoint.commit(1, {"a": state(n=1), "b": state(n=1), "c": state(n=1)}, {}, {})
    loop, reached = asyncio.get_running_loop(), asyncio.Event()
    may_go_on = asyncio.Event()
    put = Store.put

    def held(*args, **more):
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(may_go_on.wait(), loop).result()
        put(*args, **more)

    monkeypatch.setattr(Store, "put", held)
    changes = {"a": state(n=2), "b": None, "d": False}
    committing = asyncio.create_task(checkpoint.commit(2, changes, {0: 1}, {}))
    await reached.wait()
    expected = [state(n=2), None, state(n=1), False]
    assert checkpoint.load(["a", "b", "c", "d"]) == expected
    assert (checkpoint.epoch, checkpoint.positions) == (1, {})
    may_go_on.set()
    await committing
    assert checkpoint.load(["a", "b", "c", "d"]) == expected
    assert (checkpoint.epoch, checkpoint.positions) == (2, {0: 1})


@pytest.mark.parametrize("begun", [False, True])
async def test_a_commit_that_nobody_waits_for_is_made_all_the_same(opened, monkeypatch, begun):
    """Whether or not its thread has begun with it when it is cancelled."""
    checkpoint = opened()
    put, reached, may_go_on = Store.put, threading.Event(), threading.Event()

    def hold():
        reached.set()
        assert may_go_on.wait(HANG)

    def held(*args, **more):
        hold()
        put(*args, **more)

    if begun:
        monkeypatch.setattr(Store, "put", held)
    else:
        checkpoint._thread.submit(hold)
    committing = asyncio.create_task(checkpoint.commit(1, {"a": state(n=1)}, {0: 5}, {}))
    await asyncio.sleep(0)  # after which it waits for its thread
    await until(reached.is_set)
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    may_go_on.set()
    again = opened()  # which waits for it
    assert (again.epoch, again.positions, again.load(["a"])) == (1, {0: 5}, [state(n=1)])


# Keys that are forgotten.


async def test_a_key_without_a_change_for_its_ttl_is_unknown_and_removed(opened, monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    checkpoint = opened(ttl=60)
    await checkpoint.commit(1, {"old": state(n=1), "over": False}, {}, {})
    now += 59
    assert checkpoint.load(["old", "over"]) == [state(n=1), False]
    await checkpoint.commit(2, {"young": state(n=1)}, {}, {})
    now += 2
    assert checkpoint.load(["old", "over", "young"]) == [None, None, state(n=1)]
    await checkpoint.commit(3, {}, {}, {})
    checkpoint = opened()  # without a ttl
    assert checkpoint.load(["old", "over", "young"]) == [None, None, state(n=1)]


async def test_keys_whose_functions_have_returned_are_bounded(opened, monkeypatch):
    monkeypatch.setattr(module, "MOST_FINISHED", 3)
    now = 1_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    checkpoint = opened()
    for n in range(8):
        now += 1
        await checkpoint.commit(n + 1, {n: False, f"live-{n}": state(n=n)}, {}, {})
    found = opened().load([*range(8), "live-0"])
    assert found == [None] * 4 + [False] * 4 + [state(n=0)]  # and those of the last tick


# Pickles.


class Counter:
    pass


async def test_a_state_with_a_pickle_is_refused(opened):
    checkpoint = opened()
    await checkpoint.commit(1, {"a": state(n=1)}, {}, {})
    with pytest.raises(CheckpointError) as raised:
        await checkpoint.commit(2, {"b": state(n=1), ("k", 1): state(c=Counter())}, {}, {})
    message = str(raised.value)
    assert "the state of the key ('k', 1) of `fraud` holds a pickle" in message
    assert "it imports `" in message
    assert "Counter`" in message
    assert "`trusted=True` or `--trust`" in message
    again = opened()
    assert again.epoch == 1
    assert again.load(["a", "b"]) == [state(n=1), None]


async def test_a_state_with_a_pickle_is_kept_where_that_is_trusted(opened):
    checkpoint = opened(trusted=True)
    await checkpoint.commit(1, {"a": state(c=Counter())}, {}, {})
    (found,) = opened(trusted=True).load(["a"])
    assert type(loads(found)["c"]) is Counter
    with pytest.raises(CheckpointError, match="the state of the key 'a' of `fraud` holds a pickle"):
        opened().load(["a"])


async def test_a_position_that_is_no_plain_value_is_refused(opened):
    checkpoint = opened()
    with pytest.raises(CheckpointError, match="a position of the source or the mark of the sink"):
        await checkpoint.commit(1, {}, {0: Counter()}, {})
    assert opened().epoch == 0


async def test_a_position_with_a_pickle_is_loaded_only_where_that_is_trusted(opened):
    await opened(trusted=True).commit(1, {}, {0: Counter()}, {})
    assert type(opened(trusted=True).positions[0]) is Counter
    with pytest.raises(CheckpointError, match=r"epoch 1 .* a pickle, .* imports `.*Counter`"):
        opened()


async def test_a_key_that_cannot_be_stored_is_refused(opened):
    checkpoint = opened()
    with pytest.raises(CheckpointError, match="the key nan cannot be stored"):
        await checkpoint.commit(1, {float("nan"): state(n=1)}, {}, {})
    with pytest.raises(CheckpointError, match="the key nan cannot be stored"):
        checkpoint.load(["a", float("nan")])
    assert opened().epoch == 0


# Versions of states.


def to_version_3(state, version):
    return {"n": state["n"] * 10, "was": version}


async def test_states_are_migrated_as_they_are_loaded(opened):
    await opened().commit(1, {"a": state(n=1), "b": state(n=2), "over": False}, {}, {})
    checkpoint = opened(state_version=3, migrate=to_version_3)
    assert checkpoint.load(["a", "over", "c"]) == [state(n=10, was=1), False, None]
    await checkpoint.commit(2, {"a": state(n=11, was=1)}, {}, {})
    # Of version 3 by now, while the other key is still of version 1.
    assert checkpoint.load(["a", "b"]) == [state(n=11, was=1), state(n=20, was=1)]


async def test_without_migrate_the_error_names_the_key_and_the_versions(opened):
    await opened().commit(1, {("a", 7): state(n=1)}, {}, {})
    with pytest.raises(CheckpointError) as raised:
        opened(state_version=2)
    message = str(raised.value)
    assert "the state of the key ('a', 7)" in message
    assert "is of version 1, and `fraud` has `state_version=2`" in message
    assert "give it `migrate=`" in message


async def test_a_state_that_was_never_migrated_is_found_when_it_is_loaded(opened):
    await opened().commit(1, {"a": state(n=1), "b": state(n=1)}, {}, {})
    await opened(state_version=2, migrate=to_version_3).commit(2, {"a": state(n=2)}, {}, {})
    checkpoint = opened(state_version=2)
    assert checkpoint.load(["a"]) == [state(n=2)]
    with pytest.raises(CheckpointError, match="the state of the key 'b' .* is of version 1"):
        checkpoint.load(["b"])


async def test_older_code_is_refused(opened):
    await opened(state_version=2).commit(1, {"a": state(n=1)}, {}, {})
    with pytest.raises(CheckpointError) as raised:
        opened(migrate=to_version_3)
    assert "has states of version 2, and `fraud` has `state_version=1`" in str(raised.value)


async def test_a_newer_version_that_has_made_no_tick_changes_nothing(opened):
    await opened().commit(1, {"a": state(n=1)}, {}, {})
    opened(state_version=2, migrate=to_version_3)
    assert opened().load(["a"]) == [state(n=1)]


@pytest.mark.parametrize(
    ("migrate", "why"),
    [
        (lambda state, version: state["gone"], "has raised for the state of the key 'a', .*KeyErr"),
        (lambda state, version: None, "has to return a dict, and gave NoneType for the key 'a'"),
    ],
)
async def test_a_migrate_that_fails_is_named(opened, migrate, why):
    await opened().commit(1, {"a": state(n=1)}, {}, {})
    with pytest.raises(CheckpointError, match=why):
        opened(state_version=2, migrate=migrate).load(["a"])


async def test_the_checkpoint_of_another_function_is_refused(opened, path):
    await opened().commit(1, {"a": state(n=1)}, {}, {})
    with pytest.raises(CheckpointError) as raised:
        opened("spree")
    message = str(raised.value)
    assert "belongs to the function `fraud`, and this one is `spree`" in message
    assert f"`velo checkpoint rename {path} spree`" in message


# Its size.


def pages(checkpoint):
    return checkpoint._store._reader.execute("PRAGMA page_count").fetchone()[0]


async def test_the_files_do_not_grow_without_bound(opened, path):
    checkpoint = opened()
    keys = [f"key-{n}" for n in range(2000)]
    sizes = []
    for epoch in range(1, 31):
        changes = dict.fromkeys(keys, state(n=epoch, text="x" * 500))
        await checkpoint.commit(epoch, changes, {}, {}, undoable=True)
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))
    assert sizes[-1] <= 1.1 * max(sizes[:10])


async def test_free_pages_are_given_back(opened, monkeypatch):
    monkeypatch.setattr("velo._checkpoint.store._FREE_PAGES", 100)
    checkpoint = opened()
    keys = range(3000)
    await checkpoint.commit(1, dict.fromkeys(keys, state(text="x" * 500)), {}, {})
    most = pages(checkpoint)
    await checkpoint.commit(2, dict.fromkeys(keys), {}, {})
    assert pages(checkpoint) < most / 2


# Copies.


async def test_any_row_of_a_copy_that_has_changed_is_noticed(opened, path, tmp_path):
    """Of many small states, large ones, functions that have returned, and the epoch before."""
    checkpoint = opened()
    changes = {n: state(text=f"small {n:04} ") for n in range(2500)}
    changes |= {"large": state(text="large " * 20_000), "before": state(text="the one before")}
    await checkpoint.commit(1, changes, {"first positions": 1}, {})
    changes = {"before": state(text="another one"), "the one that is over": False, "new": state()}
    await checkpoint.commit(2, changes, {"second": 2}, {}, undoable=True)
    opened()
    copy = tmp_path / "copy"
    with contextlib.closing(Store(path, writes=False)) as store:
        store.copy_into(copy)
    Store.check_copy(copy)
    whole = copy.read_bytes()
    texts = [b"small 0000 ", b"small 1700 ", b"small 2499 ", b"large", b"the one before"]
    texts += [b"another one", b"the one that is over", b"first positions", b"second"]
    for text in texts:  # all of them: what was free once may hold them as well
        copy.write_bytes(whole.replace(text, text.upper()))
        with pytest.raises(CheckpointError, match="is torn: .*not what was written"):
            Store.check_copy(copy)
    copy.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is torn"):
        Store.check_copy(copy)


@pytest.mark.parametrize("column", ["key", "state"])
async def test_bytes_that_have_become_text_are_noticed(opened, path, tmp_path, column):
    """One bit tells SQLite which of the two a value is."""
    await opened().commit(1, {"a": state(n=1), "b": state(n=2)}, {}, {})
    opened()
    copy = tmp_path / "copy"
    with contextlib.closing(Store(path, writes=False)) as store:
        store.copy_into(copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute(f"UPDATE keys SET {column} = CAST({column} AS TEXT)")
        connection.commit()
    with pytest.raises(CheckpointError, match="a state is not what was written"):
        Store.check_copy(copy)
