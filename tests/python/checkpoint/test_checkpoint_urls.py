"""`velo checkpoint` and `velo run --checkpoint` with the URL of an object store."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from checkpoints import opened
from helpers import HANG, environment
from object_stores import Folder
from velo._core import dumps
from velo.cli.command import velo
from velo.cli.connected.keeping import kept_settings
from velo.cli.errors import Failure


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


CHANGES = [("set", "--key", "1", "{}"), ("delete", "--key", "1"), ("compact",), ("rename", "x")]


@pytest.mark.parametrize("command", CHANGES)
def test_they_change_nothing_in_a_store(written, command):
    said = run(command[0], written.url, *command[1:], code=2)
    assert "is in an object store: `velo checkpoint copy` it to a folder" in said


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
