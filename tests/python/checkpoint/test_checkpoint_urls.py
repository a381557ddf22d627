"""`velo checkpoint` and `velo run --checkpoint` with the URL of an object store."""

import json
import re
import socket
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from checkpoints import opened
from helpers import HANG, environment
from object_stores import Folder
from replayed import Once, TakingBack, by_key, expected, sequence
from velo._checkpoint import commits
from velo._checkpoint.remote import Remote
from velo._core import dumps
from velo._diagnostics import failpoints
from velo.cli.command import velo
from velo.cli.connected.keeping import kept_settings
from velo.cli.errors import Failure
from velo.connect.errors import Superseded
from velo.errors import CheckpointError


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("VELO_CHECKPOINT_CACHE", str(tmp_path / "cache"))
    return Folder(tmp_path)


@pytest.fixture
async def written(place):
    with opened(place.url) as checkpoint:
        await checkpoint.commit(1, {"a": dumps({"n": 1}), "b": dumps({"n": 2})}, {"p": 7}, {}, 3)
        await checkpoint.commit(2, {"a": dumps({"n": 3}), "c": False}, {"p": 9}, {})
    return place


def run(*args, code=0):
    said = CliRunner().invoke(velo, ["checkpoint", *map(str, args)])
    assert said.exit_code == code, said.output
    return said.output


async def test_they_look_while_a_run_has_it_and_claim_nothing(written):
    with opened(written.url) as checkpoint:
        names = written.names()
        shown = json.loads(run("inspect", written.url, "--json"))
        assert (shown["path"], shown["epoch"], shown["keys"], shown["finished"]) == (
            *(written.url, 2, 2),
            1,
        )
        assert shown["positions"] == [{"partition": "p", "position": 9, "ahead": 0}]
        assert shown["commit"] == 4
        said = run("inspect", written.url)
        assert "last had   process " in said
        assert "which has made commit 4" in said
        assert json.loads(run("get", written.url, "--key", '"a"'))["state"] == {"n": 3}
        lines = [json.loads(line) for line in run("export", written.url).splitlines()]
        assert {line["key"]: line["state"] for line in lines} == {
            "a": {"n": 3},
            "b": {"n": 2},
            "c": None,
        }
        assert "epoch 2 is whole, with 3 keys" in run("verify", written.url)
        assert written.names() == names
        await checkpoint.commit(3, {"a": None}, {}, {})
    assert json.loads(run("inspect", written.url, "--json"))["keys"] == 1


async def test_a_copy_in_a_folder_goes_on_and_so_does_one_of_that_in_a_store(written, tmp_path):
    run("copy", written.url, tmp_path / "copy")
    run("set", tmp_path / "copy", "--key", '"a"', '{"n": 5}')
    with opened(tmp_path / "copy") as checkpoint:
        assert (checkpoint.epoch, checkpoint.positions) == (2, {"p": 9})
        await checkpoint.commit(3, {"d": dumps({"n": 9})}, {"p": 11}, {})
    other = f"{written.url}-2"
    assert f"epoch 3 copied to {other}" in run("copy", tmp_path / "copy", other)
    with opened(other) as checkpoint:
        assert checkpoint.load(["a", "b", "c", "d"]) == [
            *(dumps({"n": 5}), dumps({"n": 2})),
            *(False, dumps({"n": 9})),
        ]
        await checkpoint.commit(4, {"a": dumps({"n": 6})}, {"p": 12}, {})
    assert "epoch 4 is whole" in run("verify", other)
    assert "epoch 4 copied" in run("copy", other, f"{written.url}-3")
    assert "`" + other + "` holds a checkpoint already" in run("copy", written.url, other, code=1)


async def test_a_copy_in_a_store_leaves_no_record_of_the_journal_behind(
    place, tmp_path, monkeypatch
):
    class Crash(Exception):
        """The process dies here."""

    def dies(area, _step):
        if area == "tick":
            raise Crash

    path, sink = tmp_path / "checkpoint", TakingBack()
    events = [{"k": n % 7, "v": n} for n in range(20)]
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(failpoints, "hook", dies)
        await sequence.keyed(Once(list(events)), key="k").into(sink, checkpoint=path)
    said = run("copy", path, place.url, code=1)
    assert "has 20 records in its event journal that no tick has absorbed" in said
    assert not place.names()

    await sequence.keyed(Once([]), key="k").into(sink, checkpoint=path)
    assert by_key(sink.kept) == expected(events)
    assert json.loads(run("inspect", path, "--json"))["journal"] > 0
    run("copy", path, place.url)


async def test_keys_are_changed_in_the_store(written, tmp_path):
    run("set", written.url, "--key", '"a"', '{"n": 5}')
    run("set", written.url, "--key", '"d"', '{"n": 6}')
    assert "1 keys are forgotten" in run("delete", written.url, "--key", '"b"')
    names = written.names()
    assert 'has no key "b"' in run("delete", written.url, "--key", '"b"', code=1)
    assert written.names() == names
    for machine in ("cache", "other"):  # one that has an older working copy, and one without any
        with opened(f"{written.url}?cache={tmp_path / machine}") as checkpoint:
            assert (checkpoint.epoch, checkpoint.positions) == (2, {"p": 9})
            found = checkpoint.load(["a", "b", "c", "d"])
            assert found == [dumps({"n": 5}), None, False, dumps({"n": 6})]
    with opened(written.url) as checkpoint:
        await checkpoint.commit(3, {"a": dumps({"n": 7})}, {"p": 11}, {})
    with opened(f"{written.url}?cache={tmp_path / 'third'}") as checkpoint:
        assert (checkpoint.epoch, checkpoint.positions) == (3, {"p": 11})
        assert checkpoint.load(["a", "d"]) == [dumps({"n": 7}), dumps({"n": 6})]


async def test_a_change_in_the_store_outlives_the_tick_that_is_undone(place):
    with opened(place.url) as checkpoint:
        await checkpoint.commit(1, {"a": dumps({"n": 1}), "b": dumps({"n": 1})}, {}, {})
        changes = {"a": dumps({"n": 2}), "b": dumps({"n": 2})}
        await checkpoint.commit(2, changes, {}, {}, undoable=True)
    run("set", place.url, "--key", '"a"', '{"n": 5}')
    with opened(place.url) as checkpoint:
        checkpoint.undo()
        assert checkpoint.load(["a", "b"]) == [dumps({"n": 5}), dumps({"n": 1})]


async def test_one_is_renamed_in_the_store(written):
    with pytest.raises(CheckpointError, match=f"`velo checkpoint rename {written.url} spree`"):
        opened(written.url, "spree").__enter__()
    said = run("rename", written.url, "spree")
    assert "belongs to `spree` now, and not to `fraud`" in said
    with opened(written.url, "spree") as checkpoint:
        assert (checkpoint.epoch, checkpoint.load(["a"])) == (2, [dumps({"n": 3})])
    with pytest.raises(CheckpointError, match="belongs to the function `spree`"):
        opened(written.url, "fraud").__enter__()


async def test_one_is_made_small_in_the_store(place, tmp_path):
    with opened(place.url) as checkpoint:
        for epoch in range(1, 30):
            await checkpoint.commit(epoch, {"a": dumps({"n": epoch})}, {}, {})
    before = len(place.names())
    assert re.search(r" before, .* now$", run("compact", place.url).strip())
    # The claims of the run and of the command, and a base.
    assert before > len(place.names()) == 3
    with opened(f"{place.url}?cache={tmp_path / 'other'}") as checkpoint:
        assert (checkpoint.epoch, checkpoint.load(["a"])) == (29, [dumps({"n": 29})])


async def test_one_begins_anew_in_the_store(written):
    run("reset", written.url, "--yes")
    assert "is empty" in run("inspect", written.url)
    with opened(written.url, "another") as checkpoint:
        assert (checkpoint.epoch, checkpoint.positions, checkpoint.is_empty) == (0, {}, True)
        await checkpoint.commit(1, {"a": dumps({"n": 1})}, {"p": 1}, {})
    assert json.loads(run("inspect", written.url, "--json"))["function"] == "another"


CHANGES = [
    ("set", "--key", '"a"', "{}"),
    ("delete", "--key", '"a"'),
    ("compact",),
    ("rename", "x"),
    ("reset", "--yes"),
]


@pytest.fixture
def program(monkeypatch):
    """Another process, which stands for the one that has a checkpoint."""
    waits = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        said = f"process {process.pid} on {socket.gethostname()}"
        monkeypatch.setattr(commits, "_program", lambda: said)
        yield process


@pytest.mark.parametrize("command", CHANGES, ids=[command[0] for command in CHANGES])
async def test_one_that_a_program_has_is_changed_only_if_it_is_taken_over(
    written, program, command
):
    with opened(written.url) as checkpoint:
        names = written.names()
        said = run(command[0], written.url, *command[1:], code=1)
        assert f"may be in use by process {program.pid} on " in said
        assert "`--take-over`" in said
        assert written.names() == names
        await checkpoint.commit(3, {"b": None}, {}, {})
        run(command[0], written.url, *command[1:], "--take-over")
        with pytest.raises(Superseded, match="velo checkpoint, process "):
            await checkpoint.commit(4, {"a": dumps({"n": 99})}, {}, {})


def test_one_of_a_program_that_has_died_is_changed(place, program):
    opened(place.url).__enter__().close()
    assert "may be in use" in run("rename", place.url, "spree", code=1)
    program.communicate(b"\n")
    run("rename", place.url, "spree")


def test_one_of_another_machine_counts_as_in_use(place, monkeypatch):
    with monkeypatch.context() as there:
        there.setattr(commits, "_program", lambda: "process 7 on another.example")
        opened(place.url).__enter__().close()
    assert "in use by process 7 on another.example" in run("rename", place.url, "spree", code=1)
    run("rename", place.url, "spree", "--take-over")
    run("rename", place.url, "fraud")  # the command itself has nothing any more


async def test_a_program_that_goes_on_meanwhile_comes_first(written, monkeypatch):
    put_base = Remote.put_base

    def goes_on(self, copy):
        found = put_base(self, copy)
        with opened(f"{written.url}?cache={copy.parent}/other"):
            return found

    monkeypatch.setattr(Remote, "put_base", goes_on)
    said = run("set", written.url, "--key", '"a"', '{"n": 5}', code=1)
    assert "a program has gone on with it meanwhile, and nothing was changed" in said
    assert not [name for name in written.names() if name.startswith("base")]
    with opened(written.url) as checkpoint:
        assert checkpoint.load(["a"]) == [dumps({"n": 3})]


def test_a_folder_is_not_taken_over(tmp_path):
    opened(tmp_path / "here").__enter__().close()
    said = run("rename", tmp_path / "here", "spree", "--take-over", code=2)
    assert "`--take-over` is for URLs" in said


def test_one_that_is_not_there_is_told(place):
    assert f"there is no checkpoint at `{place.url}`" in run("inspect", place.url, code=1)
    assert "http:// is none" in run("inspect", "http://host/fraud", code=2)


def test_an_object_that_is_torn_is_told(written):
    file = written.file("commit-")
    file.write_bytes(file.read_bytes()[:-1])
    assert f"is torn: `{file.name}`" in run("verify", written.url, code=1)


def test_without_obstore_the_error_says_what_to_install(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    for name in ("bucket", "commits", "remote"):
        monkeypatch.delitem(sys.modules, f"velo._checkpoint.{name}", raising=False)
    said = run("inspect", place.url, code=1)
    assert "a checkpoint in an object store needs a package" in said
    assert "pip install 'velo-stream[objects]'" in said
    with pytest.raises(Failure, match="needs a package"):  # before a run begins
        kept_settings(place.url, None, False, None, False)


def test_a_setting_that_does_not_fit_is_told_before_a_run_begins(place):
    with pytest.raises(click.UsageError, match="no setting `colour`"):
        kept_settings(f"{place.url}?colour=red", None, False, None, False)


FUNCTION = """
from velo import stream_fn


@stream_fn
async def total(events, state):
    async for event in events:
        state["total"] = state.get("total", 0) + event["n"]
        yield state["total"]
"""


def test_a_run_goes_on_from_a_store(place, tmp_path):
    (tmp_path / "totals.py").write_text(FUNCTION)
    command = "-m velo run totals.py:total -i in.ndjson -k k -o out.ndjson --checkpoint"
    for number in (1, 2):
        with (tmp_path / "in.ndjson").open("a") as file:
            file.write('{"k": 1, "n": 1}\n' * 5)
        url = f"{place.url}?cache={tmp_path}/{number}"
        ended = subprocess.run(
            [sys.executable, *command.split(), url],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=HANG,
        )
        assert ended.returncode == 0, ended.stderr
    lines = (tmp_path / "out.ndjson").read_text().splitlines()
    # At the end of a file, the keys end: they begin anew behind it.
    assert [json.loads(line)["result"] for line in lines] == [1, 2, 3, 4, 5] * 2
    assert json.loads(run("inspect", place.url, "--json"))["function"] == "total"
