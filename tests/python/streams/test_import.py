"""What importing velo takes."""

import subprocess
import sys
import typing

import pytest

import velo
from helpers import environment

SLOW = {"asyncio", "dataclasses", "inspect", "logging", "pathlib", "pickle", "re", "typing"}
DECORATED = """
import sys
before = set(sys.modules)
import velo
@velo.stream_fn
async def plain(events):
    async for event in events:
        yield event
@velo.stream_fn(mode="process")
async def with_state(events, state):
    async for event in events:
        yield event
print(sorted(SLOW & (set(sys.modules) - before)))
"""


def test_importing_velo_imports_nothing_that_takes_longer_than_velo():
    code = f"SLOW = {SLOW}\n{DECORATED}"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert ran.stdout == "[]\n"


def test_generic_classes_take_parameters():
    shown = velo.StreamFn[int, str]
    assert (typing.get_origin(shown), typing.get_args(shown)) == (velo.StreamFn, (int, str))

    def of(fn: velo.StreamFn[int, str], stream: velo.Stream[int, str]) -> None: ...

    assert typing.get_type_hints(of)["fn"] == shown

    class Own(velo.StreamFn[int, str]): ...

    assert issubclass(Own, velo.StreamFn)


def test_every_public_name_is_there():
    for name in velo.__all__:
        assert getattr(velo, name) is not None
    assert velo.Stream.__module__ == "velo._api.stream"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="`velo` has no attribute `Steam`"):
        velo.Steam  # noqa: B018
