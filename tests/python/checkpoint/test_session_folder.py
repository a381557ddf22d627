"""The folder of a supervisor's sessions."""

import contextlib

import pytest

from velo import _core
from velo._checkpoint.session_folder import Change, SessionFolder
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
