"""Pictures of `velo top` for the documentation, while a shop runs that the dashboard's show, too.

python tests/python/support/capture.py docs/top
"""

import asyncio
import contextlib
import io
import re
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from pictured import shop
from terminal import Terminal

SIZES = [(80, 24), (200, 50)]
COLOURS = {"brown": "yellow"}
# The seconds after which latencies are no longer those of the start.
LONG = 20


async def main(folder):
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program, _ = shop(stack, place)
        await asyncio.sleep(LONG)
        for columns, rows in SIZES:
            terminal = Terminal(["top", "--pid", program.pid], columns, rows)
            try:
                await terminal.shows("spree", when=has_rates)
                terminal.press("e\x1b[B")
                await terminal.shows("↓events ", "live, ", when=has_rates)
            finally:
                terminal.close()
            path = folder / f"{columns}x{rows}.svg"
            with terminal.lock:
                path.write_text(picture(terminal.screen))
            print(path)


def has_rates(lines):
    """Rates are known from the second look on."""
    return re.search(r"[1-9][\d,]* events/s", lines[0])


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
