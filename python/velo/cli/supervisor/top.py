"""`velo top`: a supervisor's workers and streams, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from velo.cli.errors import Failure
from velo.cli.supervisor.figures import Watcher
from velo.cli.supervisor.line import Line, socket_option
from velo.cli.supervisor.status import condition, duration, size

__all__ = ["top"]

# By what streams are sorted, and the key that says so; numbers go downwards.
_ORDERS = {
    "r": ("events/s", "events_per_second"),
    "e": ("events", "events"),
    "b": ("backlog", "queued"),
    "a": ("age", "age"),
    "n": ("name", "name"),
}
# What the terminal sends for keys that are not characters.
_KEYS = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "back",
}
_HELP = "sort: r e b a n · / filter · ↑↓ choose · x end stream · q quit"
_WHY = "the stream was ended by hand (`velo top`)"


@click.command(short_help="Watch workers and streams, live.")
@socket_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Look so often.",
)
def top(socket: str | None, interval: float) -> None:
    """Show the workers and streams of a supervisor until `q`.

    r e b a n sort by events/s, events, backlog, age, name. / filters by a part of a stream's or
    function's name. Up and down choose a stream, x and then y end it: its program sees a
    `StreamClosed` that says so.
    """
    console = Console(highlight=False)
    if not (sys.stdin.isatty() and console.is_terminal):
        raise Failure("`velo top` needs a terminal; `velo status --json` does not")
    line = Line(socket)
    view = _View(line)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        due = 0.0
        while not view.left:
            if (now := time.monotonic()) >= due:
                view.look()
                due = now + interval
            live.update(view.render(*console.size), refresh=True)
            for key in _pressed(max(0.0, due - time.monotonic())):
                view.press(key)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Have keys come as they are pressed."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(bound: float) -> list[str]:
    """Wait for keys, for so many seconds at most."""
    if not select.select([sys.stdin], [], [], bound)[0]:
        return []
    data = os.read(sys.stdin.fileno(), 64)
    if (key := _KEYS.get(data)) is not None:
        return [key]
    return [_KEYS.get(character.encode(), character) for character in data.decode(errors="ignore")]


class _View:
    """What is shown, and what keys do to it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._watcher = Watcher(line)
        self._state: dict[str, Any] = {}
        self._order = "r"
        self._filter = ""
        self._typing = False
        self._chosen: tuple[int, int, int] | None = None
        self._asking = False
        self._said = ""
        self.left = False

    def look(self) -> None:
        """Look at the supervisor again."""
        self._state = self._watcher.look()

    def press(self, key: str) -> None:
        """Do what a key asks for."""
        if self._typing:
            self._type(key)
        elif self._asking:
            self._asking = False
            if key == "y":
                self._end()
        elif key in _ORDERS:
            self._order = key
        elif key == "/":
            self._typing, self._filter = True, ""
        elif key in ("up", "down"):
            self._move(1 if key == "down" else -1)
        elif key == "x":
            self._asking = self._stream() is not None
        elif key == "escape":
            self._filter, self._said = "", ""
        elif key == "q":
            self.left = True

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self._typing = False
            self._filter = self._filter if key == "enter" else ""
        elif key == "back":
            self._filter = self._filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self._filter += key

    def _streams(self) -> list[dict[str, Any]]:
        field = _ORDERS[self._order][1]
        streams = [
            stream
            for stream in self._state["streams"]
            if self._filter in f"{_name(stream)} {stream['function']}"
        ]
        if field == "name":
            return sorted(streams, key=_name)
        return sorted(streams, key=lambda s: (-(s[field] or 0), _name(s)))

    def _stream(self) -> dict[str, Any] | None:
        return next((s for s in self._streams() if _place(s) == self._chosen), None)

    def _move(self, by: int) -> None:
        places = [_place(s) for s in self._streams()]
        if places:
            at = places.index(self._chosen) + by if self._chosen in places else 0
            self._chosen = places[max(0, min(at, len(places) - 1))]

    def _end(self) -> None:
        if (stream := self._stream()) is not None:
            # Its name is not unique, and its place may be another one's by now.
            which = f"{stream['link']}:{stream['slot']}:{stream['name']}"
            self._line.supervisor.end(which, _WHY)
            ended = any('"slot"' in (look["answer"] or "") for look in self._line.look())
            what = "ended" if ended else "not ended: it is over, or its worker is busy:"
            self._said = f"{what} {_name(stream)}"

    def render(self, width: int, height: int) -> Group:
        """Return what fills a terminal of this size."""
        state = self._state
        shown = state["workers"][: max(2, (height - 8) // 3)]
        head = (
            f"velo {state['velo']} · pid {state['pid']} · up {duration(state['uptime'])} · "
            f"{len(state['workers'])} workers · {len(state['clients']) - 1} clients · "
            f"{sum(worker['residents'] for worker in state['workers'])} streams"
            + (" · draining" if state["draining"] else "")
        )
        workers = _table("worker", "pid", "cpu %", "memory", "streams", "events/s", "queue", "")
        for worker in shown:
            workers.add_row(
                str(worker["id"]),
                str(worker["pid"]),
                _number(worker["cpu"]),
                size(worker["memory"]),
                str(worker["residents"]),
                _number(worker["events_per_second"]),
                str(worker["queued"]),
                condition(worker),
            )
        columns = ["function", "age", "events", "events/s", "backlog"]
        wide = width >= 100
        if wide:
            columns += ["results", "worker", "client"]
        streams = _table("stream", *columns)
        rows = height - len(shown) - 5
        matching = self._streams()
        places = [_place(s) for s in matching]
        at = places.index(self._chosen) if self._chosen in places else 0
        first = max(0, min(at - rows // 2, len(matching) - rows))
        for stream in matching[first : first + rows]:
            cells = [
                _name(stream),
                (stream["function"] or "?").rpartition(":" if not wide else "\0")[2],
                "" if stream["age"] is None else duration(stream["age"]),
                str(stream["events"]),
                _number(stream["events_per_second"]),
                str(stream["queued"]),
            ]
            if wide:
                cells += [str(stream[name]) for name in ("results", "worker", "client")]
            style = "reverse" if _place(stream) == self._chosen else None
            streams.add_row(*cells, style=style)
        return Group(_text(head, "bold"), workers, _text(""), streams, _text(self._foot(), "dim"))

    def _foot(self) -> str:
        if self._typing:
            return f"filter: {self._filter}_"
        if self._asking and (stream := self._stream()) is not None:
            return f"end {_name(stream)}? y/n"
        order = f"by {_ORDERS[self._order][0]}"
        kept = f" · only `{self._filter}`" if self._filter else ""
        return f"{order}{kept} · {self._said or _HELP}"


def _text(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold reverse")
    table.add_column(first, no_wrap=True, overflow="ellipsis", ratio=2)
    for name in others:
        left = name in ("function", "")
        table.add_column(
            name,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if left else "right",
            min_width=len(name),
            ratio=2 if left and name else 1,
        )
    return table


def _name(stream: dict[str, Any]) -> str:
    return stream["name"] or f"{stream['link']}:{stream['slot']}"


def _place(stream: dict[str, Any]) -> tuple[int, int, int]:
    return stream["worker"], stream["link"], stream["slot"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
