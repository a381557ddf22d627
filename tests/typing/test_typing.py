"""mypy and pyright read velo's types as users do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "python"


def mypy(_folder, *files):
    """What mypy reports: file, line, message. It shares the cache of `make lint`."""
    ran = run("mypy", "--output", "json", *map(str, files))
    assert ran.returncode in (0, 1), ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert bool(found) == (ran.returncode == 1), ran.stdout + ran.stderr
    return [(Path(each["file"]).name, each["line"], each["message"]) for each in found]


def pyright(folder, *files):
    """What pyright reports: file, line, message."""
    for file in files:
        shutil.copy(file, folder)  # what it includes has to lie beside its settings
    settings = folder / "pyrightconfig.json"
    settings.write_text(json.dumps({"extraPaths": [str(SOURCE)]}))
    ran = run("pyright", "--outputjson", "-p", str(settings), "--pythonpath", sys.executable)
    assert ran.returncode in (0, 1), ran.stderr + ran.stdout
    report = json.loads(ran.stdout)
    return [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    ]


def run(checker, *arguments):
    return subprocess.run(
        [sys.executable, "-m", checker, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def marked(file):
    """The lines that must be reported."""
    return {
        number
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.rstrip().endswith("# E")
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_good_uses_and_the_examples_are_accepted(checker, tmp_path):
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert examples
    # mypy reads the examples as one of the linters.
    files = [HERE / "good.py", *(examples if checker is pyright else [])]
    assert checker(tmp_path, *files) == []


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_bad_uses_are_rejected_where_they_are(checker, tmp_path):
    bad = HERE / "bad.py"
    reported = {line for _, line, _ in checker(tmp_path, bad)}
    assert reported == marked(bad)
