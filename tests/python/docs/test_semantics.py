"""Every promise in docs/semantics.md names tests, and they are there."""

import ast
import re

import pytest

from helpers import ROOT

TESTS = ROOT / "tests" / "python"
TEXT = (ROOT / "docs" / "semantics.md").read_text()
PROMISES = re.findall(r"^- (.*(?:\n  .*)*)", TEXT, re.MULTILINE)
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def known_tests():
    """The tests that there are: file and name, and whether they run in both modes."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = {argument.arg for argument in node.args.args}
                found[path.name, node.name] = bool(
                    arguments & {"mode", "way", "mix", "runner", "counting"}
                )
    return found


TESTS_THERE = known_tests()


def test_a_file_name_names_one_file():
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest imports only one of them"


def test_there_are_promises():
    assert len(PROMISES) > 80


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise[:40])
def test_a_promise_names_its_tests(promise):
    named = NAMED.findall(promise)
    assert named, "no test is named"
    for test in named:
        assert test in TESTS_THERE, f"there is no {test}"


def test_promises_for_both_modes_are_tried_in_both():
    """A promise that does not say otherwise has a test that runs in both modes."""
    head = TEXT.split("## What differs")[0]
    head = re.sub(r"## Recovery.*?(?=\n## )", "", head, flags=re.DOTALL)  # of workers, all of it
    one_mode = [
        promise
        for promise in re.findall(r"^- (.*(?:\n  .*)*)", head, re.MULTILINE)
        if not promise.startswith("Process mode:")
        and not any(TESTS_THERE[test] for test in NAMED.findall(promise))
    ]
    about_one_mode = re.compile(
        "worker|inline function|interpreter exits|Ctrl-C|However the client ends|preload|forks|"
        "several workers|Results that were out before the death|`os._exit`|uvloop|relative imports|"
        "module that runs streams|composed function has|calls the function itself"
    )
    assert [promise for promise in one_mode if not about_one_mode.search(promise)] == []
