"""`velo top`: workers and streams, live."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator

import click
from rich.console import Console
from rich.live import Live

from velo.cli.errors import Failure
from velo.cli.supervisor.overview import Overview, which_supervisors
from velo.cli.supervisor.screen import Screen

__all__ = ["top"]

# The seconds that a supervisor may take for an answer. It waits for its workers less than one.
_BOUND = 2.0

# The sequences that a terminal sends for keys that are not characters.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
_KEYS = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "back",
    "\b": "back",
}


@click.command(short_help="Watch workers and streams, live.")
@which_supervisors
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
def top(socket: str | None, pid: int | None, interval: float) -> None:
    """Watch worker processes and their streams, live.

    Of all programs of this user that run streams in process mode, as they come and go, and of a
    supervisor that programs share, if one runs.

    \b
      up, down, page keys  choose a stream; the last line has the keys of a lane
      x, then y            end the chosen stream: its program gets `StreamClosed`
      r e b l a n          sort by events/s, events, backlog, latency (p99), age,
                           name; the same key again reverses the order
      /                    show only streams whose name, key or function contains
                           a text; escape shows all again
      q                    quit

    The input of a detached session is ended by x and y, as its timeout would.
    """  # noqa: D301
    # (Click leaves lines alone that stand below a backspace: the docstring has to hold one.)
    console = Console(highlight=False, emoji=False)
    if not (sys.stdin.isatty() and console.is_terminal):
        raise Failure("`velo top` needs a terminal; `velo status --json` does not")
    _watch(Screen(Overview(socket, pid, _BOUND)), console, interval)


def _watch(screen: Screen, console: Console, interval: float) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        due = 0.0
        while not screen.left:
            if (now := time.monotonic()) >= due:
                screen.look()
                due = now + interval
            live.update(screen.render(*console.size), refresh=True)
            for key in _pressed(max(0.0, due - time.monotonic())):
                screen.press(key)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Deliver keys as they are pressed, without a wait for the end of the line."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin, termios.TCSADRAIN)  # keys that were typed before count as well
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(bound: float) -> list[str]:
    """Wait for keys, at most the given seconds."""
    if not select.select([sys.stdin], [], [], bound)[0]:
        return []
    data = os.read(sys.stdin.fileno(), 256)
    if not data:
        return ["q"]  # the terminal is gone
    return [_KEYS.get(key, key) for key in _SEQUENCE.findall(data.decode(errors="ignore"))]
