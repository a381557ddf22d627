"""`velo checkpoint`: what it shows, and what it changes."""

import datetime as dt
import json
import os
import shutil
import uuid

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoints import opened
from hostile_pickles import AsItArrives
from velo._core import dumps, loads
from velo.cli.command import velo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fraud"


@pytest.fixture
async def written(path):
    """The checkpoint of a run that has ended."""
    changes = {
        "card-1": dumps({"spent": 12.5}),
        ("card", 2): dumps({"spent": 3, "tags": ("a", b"\0")}),
        "over": False,
    }
    with opened(path) as checkpoint:
        await checkpoint.commit(1, {"card-0": dumps({})}, {("t", 0): 3}, {})
        await checkpoint.commit(
            2, {"card-0": None, **changes}, {("t", 0): 17}, {("t", 0): [19, 20]}, 300
        )
    return path


def run(*arguments, code=0, input=None):
    """What a subcommand prints."""
    result = CliRunner().invoke(velo, ["checkpoint", *map(str, arguments)], input=input)
    assert result.exit_code == code, result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def lines(output):
    return [json.loads(line) for line in output.splitlines()]


def exported(path):
    return {json.dumps(line["key"]): line["state"] for line in lines(run("export", path))}


EXPORTED = {
    '"card-1"': {"spent": 12.5},
    '["card", 2]': {"spent": 3, "tags": {"$tuple": ["a", {"$bytes": "AA=="}]}},
    '"over"': None,
}


def test_inspect_shows_what_there_is(written):
    shown = run("inspect", written)
    for line in (
        "function   fraud, states of version 1",
        "used by    no process",
        "epoch      2, made 0:0",
        "keys       2, and 1 whose functions have returned",
        "mark       300",
        'position   ["t", 0]: 17, and 2 records beyond it',
    ):
        assert line in shown
    found = json.loads(run("inspect", written, "--json"))
    assert (found["function"], found["epoch"], found["keys"], found["finished"]) == (
        "fraud",
        2,
        2,
        1,
    )
    assert found["positions"] == [{"partition": ["t", 0], "position": 17, "ahead": 2}]
    assert found["bytes"] > 0
    assert found["used_by"] is None


def test_export_and_get_print_keys_with_their_states(written):
    assert exported(written) == EXPORTED
    (line,) = lines(run("get", written, "--key", '["card", 2]'))
    assert (line["key"], line["state"]) == (["card", 2], EXPORTED['["card", 2]'])
    assert len(lines(run("get", written, "--key", '"over"', "--key", '"card-1"'))) == 2
    assert "has no key 7" in run("get", written, "--key", "7", code=1)


def test_a_key_has_to_be_json(written):
    assert "a text is in quotes: `--key '\"card-1\"'`" in run(
        "get", written, "--key", "card-1", code=2
    )
    assert "an object is no key" in run("get", written, "--key", "{}", code=2)


async def test_they_look_while_a_run_has_it(written):
    with opened(written) as checkpoint:
        assert f"used by    process {os.getpid()}" in run("inspect", written)
        assert exported(written) == EXPORTED
        await checkpoint.commit(3, {"card-1": None}, {}, {})
        assert '"card-1"' not in exported(written)
        assert "epoch 3 is whole, with 2 keys" in run("verify", written)


@pytest.mark.parametrize(
    "command",
    [
        ("set", "--key", "1", "{}"),
        ("delete", "--key", '"card-1"'),
        ("reset", "--yes"),
        ("compact",),
        ("rename", "spree"),
    ],
    ids=lambda command: command[0],
)
def test_they_change_nothing_while_a_run_has_it(written, command):
    name, *more = command
    with opened(written):
        assert "in use by this process" in run(name, written, *more, code=1)
    assert exported(written) == EXPORTED


def test_set_changes_a_state_and_makes_a_key(written):
    run("set", written, "--key", '"card-1"', '{"spent": 1, "tags": {"$tuple": [1]}}')
    run("set", written, "--key", "[7]", "-", input='{"new": true}')
    with opened(written) as checkpoint:
        found = checkpoint.load(["card-1", (7,)])
        assert [loads(state) for state in found] == [{"spent": 1, "tags": (1,)}, {"new": True}]
        assert checkpoint.positions == {("t", 0): 17}


@pytest.mark.parametrize("state", ["{", "[1]", '{"a": {"$what": 1}}', '{"a": {"$bytes": "?"}}'])
def test_set_refuses_what_is_no_state(written, state):
    assert "state" in run("set", written, "--key", "1", state, code=2)
    assert exported(written) == EXPORTED


def test_delete_forgets_keys(written):
    said = run("delete", written, "--key", '"card-1"', "--key", '"over"', "--key", "9", code=1)
    assert "2 keys are forgotten" in said
    assert "has no key 9" in said
    with opened(written) as checkpoint:
        assert checkpoint.load(["card-1", "over"]) == [None, None]


@pytest.mark.parametrize("undoes", [True, False])
async def test_what_is_changed_by_hand_stays_when_the_last_epoch_is_undone(path, undoes):
    with opened(path) as checkpoint:
        await checkpoint.commit(1, {"a": dumps({"n": 1}), "b": dumps({"n": 1})}, {}, {})
        changes = {"a": dumps({"n": 2}), "c": dumps({"n": 2})}
        await checkpoint.commit(2, changes, {}, {}, undoable=True)
    run("set", path, "--key", '"a"', '{"n": 10}')
    run("delete", path, "--key", '"b"')
    with opened(path) as checkpoint:
        if undoes:
            checkpoint.undo()
        c = None if undoes else dumps({"n": 2})
        assert checkpoint.load(["a", "b", "c"]) == [dumps({"n": 10}), None, c]


def test_reset_asks_and_forgets_everything(written):
    run("reset", written, code=1, input="n\n")
    assert exported(written) == EXPORTED
    said = run("reset", written, input="y\n")
    assert "forget 3 keys and all positions of `fraud`?" in said
    assert exported(written) == {}
    with opened(written, "another", state_version=7) as checkpoint:
        assert (checkpoint.epoch, checkpoint.positions) == (0, {})


async def test_compact_makes_the_file_small(path):
    with opened(path) as checkpoint:
        states = {n: dumps({"text": "x" * 500}) for n in range(3000)}
        await checkpoint.commit(1, {**states, "kept": dumps({})}, {}, {})
        await checkpoint.commit(2, dict.fromkeys(states), {}, {})
    before = (path / "state.sqlite").stat().st_size
    run("compact", path)
    assert (path / "state.sqlite").stat().st_size < before / 10
    assert exported(path) == {'"kept"': {}}


async def test_compact_forgets_old_keys(written, monkeypatch):
    monkeypatch.setattr("velo.cli.checkpoint.changing.time.time", lambda: 10**10)
    run("compact", written, "--ttl", 60)
    assert exported(written) == {}


def test_rename_maps_another_name(written):
    run("rename", written, "spree")
    with opened(written, "spree") as checkpoint:
        assert checkpoint.epoch == 2


def test_a_copy_goes_on_where_the_original_was(written, tmp_path):
    with opened(written):
        said = run("copy", written, tmp_path / "backup")
        assert "epoch 2 copied" in said
    assert exported(tmp_path / "backup") == EXPORTED
    with opened(tmp_path / "backup") as checkpoint:
        assert (checkpoint.epoch, checkpoint.mark) == (2, 300)
    assert "holds a checkpoint already" in run("copy", written, tmp_path / "backup", code=1)


def test_a_folder_can_be_moved(written, tmp_path):
    shutil.move(written, tmp_path / "moved")
    with opened(tmp_path / "moved") as checkpoint:
        assert checkpoint.load(["card-1"]) == [dumps({"spent": 12.5})]


def test_verify_names_what_is_torn(written):
    assert "epoch 2 is whole, with 3 keys" in run("verify", written)
    file = written / "state.sqlite"
    content = bytearray(file.read_bytes())
    content[content.rindex(b"spent") + 1] ^= 1
    file.write_bytes(content)
    said = run("verify", written, code=1)
    assert "torn: the state of the key" in said
    assert "1 of 3 keys" in said


def test_verify_names_a_broken_file(written):
    file = written / "state.sqlite"
    content = bytearray(file.read_bytes())
    content[4096 * 3 + 8 : 4096 * 3 + 200] = b"\xff" * 192
    file.write_bytes(content)
    assert "torn" in run("verify", written, code=1)


def test_there_is_none(tmp_path):
    for command in ("inspect", "export", "verify", "compact"):
        assert "there is no checkpoint at" in run(command, tmp_path / "none", code=1)
    assert not (tmp_path / "none").exists()


class Counter:
    pass


async def test_pickles_are_named_and_not_run(path):
    with opened(path, trusted=True) as checkpoint:
        await checkpoint.commit(1, {"a": dumps({"c": Counter()})}, {}, {})
    (line,) = lines(run("export", path))
    assert "Counter" in line["state"]["$pickle"]


async def test_a_pickle_in_the_positions_is_named_and_not_run(path):
    """`AsItArrives` ends the process that loads it."""
    with opened(path, trusted=True) as checkpoint:
        await checkpoint.commit(1, {"a": dumps({})}, {"p": AsItArrives("exit")}, {}, 300)
    said = "a pickle, which is not run: it imports `hostile_pickles.do`"
    assert f"positions  {said}" in run("inspect", path)
    found = json.loads(run("inspect", path, "--json"))
    assert found["positions"] == found["mark"] == {"$pickle": "`hostile_pickles.do`"}
    shown = run("verify", path)
    assert "epoch 1 is whole, with 1 keys" in shown
    assert f"its positions are {said}" in shown


STATE = {
    "scalars": [None, True, 1, 2**80, 1.5, float("inf"), 1j, "text", "\ud800"],
    "bytes": [b"\xff", bytearray(b"\xff")],
    "items": [(1, (2,)), {3}, frozenset({4})],
    "dicts": [{1: 2, (3,): 4}, {"$odd": 1}, {}],
    "times": [
        dt.date(2026, 5, 1),
        dt.time(1, 2, 3, 4),
        dt.datetime(2026, 5, 1, 1, 2, 3, tzinfo=dt.UTC),
        dt.datetime(2026, 5, 1, fold=1),
        dt.timedelta(1, 2, 3),
    ],
    "numpy": [np.float32(0.1)],
}
KEYS = ["a", 7, 0.5, b"\0", ("a", ("b", 1)), frozenset({1, ("a",)}), uuid.UUID(int=5), None]


async def test_every_plain_state_can_be_taken_out_and_put_back(path):
    with opened(path) as checkpoint:
        await checkpoint.commit(
            1, {key: dumps({**STATE, "key": repr(key)}) for key in KEYS}, {}, {}
        )
    taken = lines(run("export", path))
    run("reset", path, "--yes")
    for line in taken:
        run("set", path, "--key", json.dumps(line["key"]), json.dumps(line["state"]))
    with opened(path) as checkpoint:
        for key, state in zip(KEYS, checkpoint.load(KEYS), strict=True):
            again = loads(state)
            assert again == {**STATE, "key": repr(key)}
            assert [type(item) for item in again["numpy"]] == [np.float32]
            assert again["times"][3].fold == 1
