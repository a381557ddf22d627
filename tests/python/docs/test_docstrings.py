"""What `help()` says: everything that is public has a docstring, also what is made in Rust."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import velo
from pages import ROOT
from velo import Stream, _core, connect, errors, events, logs, metrics, testing

STUB = Path(velo.__file__).with_name("_core.pyi")
OF_RUST = ("send", "loan", "recv", "send_batch", "recv_batch")


def public(owner):
    """The public names of a module, and those of the members of its classes."""
    for name in getattr(owner, "__all__", dir(owner)):
        value = getattr(owner, name)
        if name.startswith("_") or isinstance(value, str):
            continue
        yield f"{owner.__name__}.{name}", value
        if inspect.isclass(value) and value.__module__.startswith("velo"):
            for member, what in vars(value).items():
                if not member.startswith("_") and (callable(what) or isinstance(what, property)):
                    yield f"{name}.{member}", what


NAMES = [
    found for module in (velo, errors, events, logs, metrics, testing) for found in public(module)
]


@pytest.mark.parametrize(("name", "value"), NAMES, ids=[name for name, _ in NAMES])
def test_it_has_a_docstring(name, value):
    assert len(inspect.getdoc(value) or "") > 15


@pytest.mark.parametrize("name", OF_RUST)
def test_help_says_what_the_stub_says(name):
    (base,) = (
        node
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "StreamBase"
    )
    (method,) = (
        node for node in base.body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    said = ast.get_docstring(method)
    assert "Raises:" in said
    assert inspect.getdoc(getattr(Stream, name)) == said
    assert issubclass(Stream, _core.StreamBase)


def test_the_reference_shows_every_connector():
    page = (ROOT / "docs" / "reference" / "connect.md").read_text()
    shown = set(re.findall(r"^::: velo\.connect\.\S+\.(\w+)$", page, re.MULTILINE))
    assert {*connect._CONNECTORS, *connect._OTHERS} - shown == set()
