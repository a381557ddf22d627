"""The check that files of the Rust crates use one another in one direction only."""

import importlib.util
import sys
import textwrap

import pytest

from helpers import ROOT

CHECK = ROOT / "tools" / "layers.py"


@pytest.fixture(scope="module")
def layers():
    spec = importlib.util.spec_from_file_location("layers", CHECK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["layers"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["layers"]


@pytest.fixture
def crate(tmp_path):
    """Writes a crate of the layers `top`, `left | right` and `leaf`; returns how to add a file."""

    def add(name, text):
        path = tmp_path / "a-crate" / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    declared = """
        [a-crate.layers]
        crate = [".", "top", "left | right", "leaf"]
    """
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "layers.toml").write_text(textwrap.dedent(declared))
    add("lib.rs", "mod leaf;\nmod left;\nmod right;\nmod top;\npub use top::Top;\n")
    add("top.rs", "use crate::left::Left;\nuse crate::{leaf::Leaf, right};\n\npub struct Top;\n")
    add("left.rs", "use crate::leaf::Leaf;\n\npub struct Left;\n")
    add("right.rs", "pub fn right() {}\n")
    add("leaf.rs", "pub struct Leaf;\n")
    return add


def test_the_crates_of_velo_pass(layers):
    assert layers.check(ROOT) == []


def test_arrows_that_point_down_pass(layers, crate, tmp_path):
    assert layers.check(tmp_path) == []


UPWARD = "a-crate/src/leaf.rs:{} -> a-crate/src/top.rs: `top` is above `leaf`"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("use crate::top::Top;\n", 1),
        ("\nuse super::top::Top;\n", 2),
        ("use std::{\n    fmt,\n};\nuse crate::{\n    left as _,\n    top::{self, Top},\n};\n", 4),
        ("fn make() {\n    let top = crate::top::Top;\n}\n", 2),
        ("fn make() -> super::top::Top {\n    panic!()\n}\n", 1),
        ("use crate::Top;\n", 1),  # which the crate re-exports
        ("use crate::top;\n\nfn make() -> top::Top {\n    panic!()\n}\n", 3),
        ("mod inner {\n    use super::super::top::Top;\n}\n", 2),
    ],
)
def test_an_arrow_upwards_is_refused_with_its_line(layers, crate, tmp_path, text, line):
    crate("leaf.rs", text)
    assert UPWARD.format(line) in layers.check(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "// use crate::top::Top;\n",
        '/* use crate::top::Top; */\nconst TEXT: &str = "crate::top::Top";\n',
        "/// See [`Top`](crate::top::Top).\npub struct Leaf;\n",
        "pub(in crate::top) fn leaf() {}\n",
        "#[cfg(test)]\nmod tests {\n    use crate::top::Top;\n}\n",
    ],
)
def test_comments_strings_visibility_and_tests_are_no_arrows(layers, crate, tmp_path, text):
    crate("leaf.rs", text)
    assert layers.check(tmp_path) == []


def test_peers_do_not_use_one_another(layers, crate, tmp_path):
    crate("right.rs", "use crate::left::Left;\n")
    expected = "a-crate/src/right.rs:1 -> a-crate/src/left.rs: `left` and `right` are peers"
    assert layers.check(tmp_path) == [expected]


def test_files_of_one_layer_that_use_one_another_in_a_circle_are_refused(layers, crate, tmp_path):
    crate("leaf/mod.rs", "mod one;\nmod other;\npub struct Leaf;\n")
    (tmp_path / "a-crate" / "src" / "leaf.rs").unlink()
    crate("leaf/one.rs", "use super::other::Other;\n\npub struct One;\n")
    crate("leaf/other.rs", "use super::one::One;\n\npub struct Other;\n")
    (said,) = layers.check(tmp_path)
    assert said.startswith("2 files use one another in a circle:")
    assert "a-crate/src/leaf/one.rs:1 -> a-crate/src/leaf/other.rs" in said


def test_a_module_that_no_layer_names_is_refused(layers, crate, tmp_path):
    crate("new.rs", "pub struct New;\n")
    (said,) = layers.check(tmp_path)
    assert said.startswith("`new` is in no layer of `crate`")


def test_the_command_prints_what_is_wrong_and_fails(layers, crate, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["layers.py", str(tmp_path)])
    assert layers.main() == 0
    crate("leaf.rs", "use crate::top::Top;\n")
    assert layers.main() == 1
    assert UPWARD.format(1) in capsys.readouterr().err
