"""Every Python block of the README runs as pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
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
