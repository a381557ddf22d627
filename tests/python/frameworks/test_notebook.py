"""Cells of a real Jupyter kernel, and lines of a REPL."""

import asyncio
import os
import pty
import subprocess
import sys

import pytest

from helpers import HANG, environment

nbclient = pytest.importorskip("nbclient", reason="needs velo-stream[test]")
pytest.importorskip("ipykernel", reason="needs velo-stream[test]")


@pytest.fixture
def cells(monkeypatch, tmp_path):
    """Runs cells in one kernel, and gives what each has printed."""
    import nbformat

    for name, value in environment().items():
        monkeypatch.setenv(name, value)

    def run(*sources):
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        )
        client = nbclient.NotebookClient(
            notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
        )
        asyncio.run(client.async_execute())
        return [
            "".join(out.get("text", "") or html_of(out) for out in cell.outputs)
            for cell in notebook.cells
        ]

    def html_of(out):
        return out.get("data", {}).get("text/html", "")

    return run


FUNCTION = """
from velo import stream_fn

@stream_fn(mode={mode!r})
async def scale(events):
    async for event in events:
        yield event * {factor}
"""


def test_a_cell_that_is_edited_and_run_again(cells, mode):
    out = cells(
        FUNCTION.format(mode=mode, factor=2),
        "print(await scale.run([1, 2]))",
        "stream = await scale.open()\nawait stream.send(1)\nprint(await stream.recv())",
        FUNCTION.format(mode=mode, factor=10),
        "print(await scale.run([1, 2]))",
        "await stream.send(2)\nprint(await stream.recv())\nawait stream.aclose()",
        "try:\n    scale.run_sync([1])\nexcept Exception as error:\n    print(error)",
    )
    assert out[1] == "[2, 4]\n"
    assert out[2] == "2\n"
    assert out[4] == "[10, 20]\n"
    assert out[5] == "4\n", "a stream goes on with the code that it was opened with"
    assert "await" in out[6], "inside a running loop it says what to write instead"


def test_a_repl(mode):
    """Functions typed in have no source file."""
    lines = [
        *FUNCTION.format(mode=mode, factor=3).strip().splitlines(),
        "",
        "print('first', scale.run_sync([1, 2]))",
        *FUNCTION.format(mode=mode, factor=5).strip().splitlines(),
        "",
        "print('second', scale.run_sync([1, 2]))",
        "exit()",
        "",
    ]
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-i", "-q"],
        stdin=there,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), "TERM": "dumb", "PYTHON_BASIC_REPL": "1"},
        start_new_session=True,
    )
    os.close(there)
    try:
        os.write(here, "\n".join(lines).encode())
        output, _ = process.communicate(timeout=HANG)
    finally:
        process.kill()
        os.close(here)
    text = output.decode()
    assert "first [3, 6]" in text, text
    assert "second [5, 10]" in text, text
    assert process.returncode == 0, text


def test_an_error_in_a_cell_shows_its_line(cells, mode):
    """The source of a cell is in no file; the worker shows the line all the same."""
    out = cells(
        "from velo import stream_fn\n"
        f"@stream_fn(mode={mode!r})\n"
        "async def fails(events):\n"
        "    async for event in events:\n"
        "        yield 1 / event  # the line\n",
        "import traceback\n"
        "try:\n"
        "    await fails.run([0])\n"
        "except ZeroDivisionError as error:\n"
        "    print(''.join(traceback.format_exception(error)))",
    )
    assert "yield 1 / event  # the line" in out[1]


def test_what_a_cell_shows(cells, mode):
    out = cells(
        FUNCTION.format(mode=mode, factor=2),
        "results = await scale.run([1, 2], progress=True)",
        "scale",
    )
    assert "<progress" in out[1]
    assert "2 of 2 events" in out[1]
    assert "stream function scale" in out[2]
    assert "<svg" in out[2]
