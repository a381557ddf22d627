"""The distribution is `velo-stream`, the import name is `velo`, and every hint says so."""

import importlib.metadata
import re
import subprocess

from pages import ROOT

# `pip install velo`, `pip install 'velo[...]'` and the like: an unrelated project of that name.
WRONG = re.compile(r"pip install[^`\n]*?[\s'\"]velo(?![\w/-])|[\s'\"]velo\[[a-z]+\]")


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--", "*.md", "*.py", "*.pyi", "*.rs", "*.toml", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).exists()]


def test_the_distribution_provides_the_module_and_the_command():
    found = importlib.metadata.distribution("velo-stream")
    commands = {
        entry.name: entry.value for entry in found.entry_points.select(group="console_scripts")
    }
    assert commands == {"velo": "velo.cli:main"}
    assert {"bench", "metrics", "opentelemetry", "examples", "test"} <= set(
        found.metadata.get_all("Provides-Extra")
    )


def test_the_pattern_finds_the_wrong_name():
    wrong = ["pip install velo", "pip install 'velo[metrics]'", "pip install fastapi velo\n"]
    right = [
        "pip install velo-stream",
        "pip install 'velo-stream[metrics]'",
        "~/.cache/velo/bin/pip",
    ]
    assert [bool(WRONG.search(text)) for text in wrong + right] == [True] * 3 + [False] * 3


def test_nothing_says_to_install_another_distribution():
    files = [path for path in tracked() if path.name != "test_distribution.py"]
    assert len(files) > 100
    wrong = {
        f"{path.relative_to(ROOT)}:{number}": line
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WRONG.search(line)
    }
    assert wrong == {}
