"""The folder of a supervisor's sessions."""

import contextlib

import pytest
from click.testing import CliRunner

from small_disk import enlarge, mounted
from velo import _core
from velo._checkpoint.session_folder import Change, SessionFolder
from velo.cli.command import velo
from velo.errors import CheckpointError

KEY = _core.dumps("user-7")


def state(number):
    return Change(_core.dumps({"n": number}), 1)


def damage(folder, function):
    """Write over the pages of a function's file behind the first one."""
    file = next((folder / function).glob("*.sqlite"))
    with file.open("r+b") as pages:
        pages.seek(4096)
        pages.write(b"\xff" * (file.stat().st_size - 4096))


def folders(path):
    return sorted(one.name for one in path.iterdir() if one.is_dir())


def test_a_function_whose_file_is_torn_keeps_no_other_from_being_stored(tmp_path):
    with contextlib.closing(SessionFolder(tmp_path / "states", None)) as folder:
        for function in ("cart", "visits"):
            folder.commit({(function, KEY): state(1)})
    with contextlib.closing(SessionFolder(tmp_path / "states", None)) as folder:
        damage(tmp_path / "states", "cart")
        for _ in range(2):
            with pytest.raises(CheckpointError, match="cart"):
                folder.commit({("cart", KEY): state(2), ("visits", KEY): state(2)})
        assert folder.load(("visits", KEY)) == state(2)


def test_a_function_has_one_folder_however_often_a_full_disk_lets_it_begin(tmp_path):
    with (
        mounted(tmp_path / "disk", "8k") as disk,
        contextlib.closing(SessionFolder(disk / "states", None)) as folder,
    ):
        said = set()
        for size in range(8, 200, 4):
            enlarge(disk, f"{size}k")
            try:
                folder.commit({("cart", KEY): state(1)})
                break
            except CheckpointError as error:
                said.add(str(error))
            assert folder.load(("cart", KEY)) is None
            assert folders(disk / "states") in ([], ["cart"])
        assert any("is full" in text for text in said)
        assert folder.load(("cart", KEY)) == state(1)
        assert folders(disk / "states") == ["cart"]


def test_a_function_that_was_reset_begins_in_the_folder_that_it_had(tmp_path):
    path, functions = tmp_path / "states", ["cart", "visits"]
    with contextlib.closing(SessionFolder(path, None)) as folder:
        folder.commit({(function, KEY): state(1) for function in functions})
    for function in functions:
        arguments = ["checkpoint", "reset", "--yes", str(path / function)]
        assert CliRunner().invoke(velo, arguments).exit_code == 0
    with contextlib.closing(SessionFolder(path, None)) as folder:
        assert folder.load(("cart", KEY)) is None
        folder.commit({("cart", KEY): state(2)})
        assert folder.functions == ["cart"]
        assert folders(path) == functions


def test_functions_whose_names_are_alike_have_a_folder_each(tmp_path):
    path = tmp_path / "states"
    for _ in range(2):
        with contextlib.closing(SessionFolder(path, None)) as folder:
            for number, function in enumerate(["a:b", "a b", "a.b"]):
                folder.commit({(function, KEY): state(number)})
                assert folder.load((function, KEY)) == state(number)
    assert folders(path) == ["a.b", "a.b-2", "a.b-3"]
