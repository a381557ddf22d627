"""What importing velo takes."""

import subprocess
import sys

import pytest

import velo
from helpers import environment


def test_importing_velo_does_not_import_asyncio():
    code = "import sys, velo; print('asyncio' in sys.modules)"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert ran.stdout == "False\n"


def test_every_public_name_is_there():
    for name in velo.__all__:
        assert getattr(velo, name) is not None
    assert velo.Stream.__module__ == "velo._stream"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="`velo` has no attribute `Steam`"):
        velo.Steam  # noqa: B018
