"""Every Python block of the README and of the docs runs as pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_blocks():
    assert len(BLOCKS) >= 12


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_as_pasted(block, tmp_path):
    script = tmp_path / "pasted.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, "-X", "dev", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Error" not in done.stderr, done.stderr
    assert "Warning" not in done.stderr, done.stderr
