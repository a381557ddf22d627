"""Pictures of `velo top` for the documentation, while the flights job runs on a supervisor:

python examples/data.py
python tests/python/support/capture.py docs/top
"""

import asyncio
import contextlib
import io
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from helpers import ROOT, environment
from standalone import Daemon
from terminal import Terminal

SIZES = [(80, 24), (200, 50)]
COLOURS = {"brown": "yellow"}


async def main(folder):
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        daemon = Daemon(Path(place, "s.sock"), "--workers", 2)
        stack.callback(daemon.close)
        for columns, rows in SIZES:
            words = [
                "run",
                "examples/flights.py:turnarounds",
                "--key",
                "tailnum",
                "--mode",
                "process",
            ]
            words += ["--input", "examples/data/flights.csv", "--output", f"{place}/{rows}.ndjson"]
            job = subprocess.Popen(
                [sys.executable, "-m", "velo", *words],
                cwd=ROOT,
                env=environment(VELO_SUPERVISOR=str(daemon.path)),
                stderr=subprocess.DEVNULL,
            )
            stack.callback(job.wait)
            stack.callback(job.terminate)
            terminal = Terminal(["top", "--socket", daemon.path], columns, rows)
            try:
                await terminal.shows("turnarounds", " ms ")  # latencies are known by then
                terminal.press("e\x1b[B")
                await terminal.shows("↓events ", "live, ", without=["?"])
            finally:
                terminal.close()
            path = folder / f"{columns}x{rows}.svg"
            path.write_text(picture(terminal.screen))
            print(path)


def picture(screen):
    """What a terminal shows, as SVG that needs nothing from elsewhere."""
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    for row in range(screen.lines):
        line = Text(no_wrap=True)
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        for style, same in groupby(cells, style_of):
            line.append("".join(cell.data for cell in same), style)
        console.print(line)
    svg = console.export_svg(title="velo top")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def style_of(cell):
    colours = [
        None if name == "default" else COLOURS.get(name, name) for name in (cell.fg, cell.bg)
    ]
    return Style(color=colours[0], bgcolor=colours[1], bold=cell.bold, reverse=cell.reverse)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    asyncio.run(main(folder))
