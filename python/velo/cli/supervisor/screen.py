"""The screen of `velo top`, and the commands of its keys."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from velo.cli.supervisor.overview import Overview, address_of
from velo.cli.supervisor.status import condition, lane_lines
from velo.cli.text import inline
from velo.cli.units import duration, latency, size

__all__ = ["Screen"]

# The columns that streams can be sorted by, with their keys; numbers go downwards.
_ORDERS = {
    "r": "events_per_second",
    "e": "events",
    "b": "queued",
    "l": "latency_p99",
    "a": "age",
    "n": "name",
}
_HELP = (("r e b l a n", "sort"), ("/", "filter"), ("↑ ↓", "choose"), ("x", "end"), ("q", "quit"))
_WHY = "the stream was ended by hand (`velo top`)"
# The width, in characters, from which there is room for more columns.
_WIDE = 120


class _Column(NamedTuple):
    head: str
    width: int | None  # None: a part of what the others leave
    order: str | None = None  # the key that sorts by it


_WORKERS = [
    _Column("worker", 6),
    _Column("pid", 8),
    _Column("cpu %", 6),
    _Column("memory", 8),
    _Column("streams", 8),
    _Column("events/s", 9),
    _Column("backlog", 8),
]
_STREAMS = [
    _Column("stream", None, "n"),
    _Column("function", None),
    _Column("age", 8, "a"),
    _Column("events", 8, "e"),
    _Column("events/s", 9, "r"),
    _Column("backlog", 8, "b"),
    _Column("p50", 7),
    _Column("p99", 7, "l"),
]
_MORE = [
    _Column("keys", 8),
    _Column("results", 9),
    _Column("in", 9),
    _Column("out", 9),
    _Column("worker", 7),
    _Column("client", 8),
]


class Screen:
    """The view of the supervisors."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._states: list[dict[str, Any]] = []
        self._order = "r"
        self._turned = False
        self._filter = ""
        self._typing = False
        self._chosen: tuple[Any, ...] | None = None
        self._asking = False
        self._said = ""
        self._page = 10
        self.left = False
        """Whether the user has asked to end."""

    def look(self) -> None:
        """Look at the supervisors again."""
        self._states = self._overview.look()

    def press(self, key: str) -> None:
        """Carry out the command of a key."""
        moves = {
            "up": -1,
            "k": -1,
            "down": 1,
            "j": 1,
            "page up": -self._page,
            "page down": self._page,
        }
        if self._typing:
            self._type(key)
            return
        self._said = ""
        if self._asking:
            self._asking = False
            if key == "y":
                self._end()
        elif key in _ORDERS:
            self._turned = key == self._order and not self._turned
            self._order = key
        elif key == "/":
            self._typing, self._filter = True, ""
        elif key in moves:
            self._move(moves[key])
        elif key == "x":
            self._asking = self._stream() is not None
            self._said = "" if self._asking else "choose a stream first"
        elif key == "escape":
            self._filter, self._chosen = "", None
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

    def _all(self) -> list[dict[str, Any]]:
        kinds = ("streams", "detached_sessions")
        return [
            {**stream, "socket": state["socket"]}
            for kind in kinds
            for state in self._states
            for stream in state[kind]
        ]

    def _workers(self) -> list[dict[str, Any]]:
        return [
            {**worker, "program": state["program"]}
            for state in self._states
            for worker in state["workers"]
        ]

    def _streams(self) -> list[dict[str, Any]]:
        field = _ORDERS[self._order]
        streams = [
            stream
            for stream in self._all()
            if self._filter in _name(stream) or self._filter in (stream["function"] or "")
        ]
        streams.sort(key=_natural, reverse=field == "name" and self._turned)
        if field != "name":
            streams.sort(key=lambda stream: stream[field] or 0, reverse=not self._turned)
        return streams

    def _stream(self) -> dict[str, Any] | None:
        return next((s for s in self._streams() if _place(s) == self._chosen), None)

    def _move(self, by: int) -> None:
        places = [_place(s) for s in self._streams()]
        if places:
            at = places.index(self._chosen) + by if self._chosen in places else 0
            self._chosen = places[max(0, min(at, len(places) - 1))]

    def _end(self) -> None:
        if (stream := self._stream()) is None:
            self._said = "it is over"
            return
        ended = self._overview.end(stream["socket"], address_of(stream), _WHY)
        why = "it has an attachment, " if stream["state"] == "detached" else ""
        what = "ended" if ended else f"not ended, since {why}it is over, or its worker is busy:"
        self._said = f"{what} {_name(stream)}"

    def render(self, width: int, height: int) -> RenderableType:
        """Return the text for a terminal of this size."""
        workers, wide = self._workers(), width >= _WIDE
        if not self._states:
            return Group(_line(self._overview.nothing(), "bold"), _gap(), *self._foot_lines(height))
        shown = workers[: max(2, (height - 8) // 3)]
        hidden = len(workers) - len(shown)
        # The other lines: one about the supervisor, one about the keys, two heads, two gaps.
        rows = max(1, height - 6 - len(shown) - (hidden > 0))
        self._page = max(1, rows - 1)
        # Workers of a standalone supervisor belong to no single program.
        owned = any(state["embedded"] for state in self._states)
        table = _table([*_WORKERS, _Column("program" if owned else "", None)])
        for worker in shown:
            table.add_row(
                *map(Text, _worker_cells(worker)), style=None if worker["answers"] else "yellow"
            )
        parts: list[RenderableType] = [self._head(wide), _gap(), table]
        if hidden > 0:
            parts.append(_line(f"and {_count(hidden, 'more worker')}", "dim"))
        streams = self._window(rows)
        table = _table([*_STREAMS, *(_MORE if wide else [])], self._order, self._turned)
        for stream in streams:
            chosen = _place(stream) == self._chosen
            name, *cells = _stream_cells(stream, wide)
            table.add_row(Text(str(name)), *cells, style="bold white on blue" if chosen else None)
        parts += [_gap(), table, *(_gap() for _ in range(rows - len(streams)))]
        return Group(*parts, self._foot())

    def _window(self, rows: int) -> list[dict[str, Any]]:
        """Return the streams for the available rows, with the chosen one among them."""
        streams = self._streams()
        places = [_place(stream) for stream in streams]
        at = places.index(self._chosen) if self._chosen in places else 0
        first = max(0, min(at - rows // 2, len(streams) - rows))
        return streams[first : first + rows]

    def _head(self, wide: bool) -> Text:
        states, workers = self._states, self._workers()
        rate = sum(worker["events_per_second"] or 0 for worker in workers)
        clients = [client for state in states for client in state["clients"]]
        users = len({client["pid"] for client in clients if client["links"] > 0})
        versions = sorted({state["velo"] for state in states})
        detached = sum(state["detached"] for state in states)
        facts = [
            f"velo {', '.join(versions)}",
            f"up {duration(max(state['uptime'] for state in states))}",
            _count(len(workers), "worker"),
            _count(users, "program"),
            _count(sum(worker["residents"] for worker in workers), "stream"),
            f"{_number(rate)} events/s",
        ]
        if detached:
            facts.insert(5, f"{detached} detached")
        if len(states) > 1 or (detached and not wide):
            del facts[1]  # of different programs, or not all fit
        if any(state["draining"] for state in states):
            facts.append("draining")
        kept = [state["checkpoint"] for state in states if state["checkpoint"] is not None]
        failing = any(checkpoint["error"] for checkpoint in kept)
        if failing:
            facts.append("states are not stored: see `velo status`")
        elif ticks := [checkpoint["made"] for checkpoint in kept if checkpoint["made"]]:
            facts.append(f"last tick {duration(max(0.0, time.time() - min(ticks)))} ago")
        return _line(" · ".join(facts), "bold red" if failing else "bold")

    def _foot_lines(self, height: int) -> list[Text]:
        return [*(_gap() for _ in range(height - 3)), self._foot()]

    def _foot(self) -> Text:
        if self._typing:
            return _line(f"filter: {self._filter}▏", "bold")
        if self._asking and (stream := self._stream()) is not None:
            return _line(f"end {_name(stream)}? y / n", "bold red")
        if self._said:
            return _line(self._said, "bold")
        chosen = self._stream()
        if chosen is not None and chosen["keys"]:
            counts, *slow = lane_lines(chosen["keys"])
            shown = [f"{_name(chosen)}: {counts.partition(' ')[2].strip()}"]
            shown += [f"slowest {slow[0].partition(' ')[2].strip()}"] if slow else []
            return _line("; ".join(shown), "bold")
        foot = _line("")
        if self._filter:
            matching = f"{len(self._streams())} of {len(self._all())}"
            foot.append(f"only `{self._filter}`: {matching}  ", "bold")
        for key, what in _HELP:
            foot.append(key, "bold").append(f" {what}   ", "dim")
        return foot


def _worker_cells(worker: dict[str, Any]) -> list[str]:
    return [
        str(worker["id"]),
        str(worker["pid"]),
        _number(worker["cpu"]),
        size(worker["memory"]),
        str(worker["residents"]),
        _number(worker["events_per_second"]),
        _number(worker["queued"]),
        inline(", ".join(filter(None, (condition(worker), worker["program"])))),
    ]


def _stream_cells(stream: dict[str, Any], wide: bool) -> list[str | Text]:
    function = inline(stream["function"] or "?")
    cells: list[str | Text] = [
        _shown_name(stream, wide),
        Text(function if wide else function.rpartition(":")[2]),
        "" if stream["age"] is None else duration(stream["age"]),
    ]
    if stream["state"] == "detached":
        # A detached session has no figures: its state and the time since then are in their place.
        cells += ["detached", duration(stream["detached"]), "-", "-", "-"]
        return [*cells, *"----", str(stream["worker"]), "-"] if wide else cells
    cells += [
        _number(stream["events"]),
        _number(stream["events_per_second"]),
        _number(stream["queued"]),
        latency(stream["latency_p50"]),
        latency(stream["latency_p99"]),
    ]
    if wide:
        cells += [
            "" if stream["keys"] is None else _number(stream["keys"]["live"]),
            _number(stream["results"]),
            _bytes(stream["bytes_in"]),
            _bytes(stream["bytes_out"]),
            str(stream["worker"]),
            str(stream["client"]),
        ]
    return cells


def _table(columns: Sequence[_Column], order: str = "", turned: bool = False) -> Table:
    table = Table(
        box=None, expand=True, pad_edge=False, collapse_padding=True, header_style="reverse"
    )
    for head, width, key in columns:
        words = width is None
        mark = "" if key != order or key is None else "↑" if turned else "↓"
        table.add_column(
            f"{mark}{head}",
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if words else "right",
            width=width,
            ratio={"stream": 4, "function": 3}.get(head, 1) if width is None else None,
        )
    return table


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _gap() -> Text:
    return Text("")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _name(stream: dict[str, Any]) -> str:
    name: str = stream["name"] or f"{stream['link']}:{stream['slot']}"
    return inline(name if stream["key"] is None else f"{stream['key']} ({name})")


def _shown_name(stream: dict[str, Any], wide: bool) -> str:
    """Return the name, with the number of keys if there is no column for it."""
    if wide or stream["keys"] is None:
        return _name(stream)
    # The name may be shortened: the function has a column of its own.
    return f"{_number(stream['keys']['live'])} keys, {_name(stream)}"


def _natural(stream: dict[str, Any]) -> list[str | int]:
    """Return the sort key of a name, in which digits compare as numbers."""
    parts = re.split(r"(\d+)", _name(stream))
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def _place(stream: dict[str, Any]) -> tuple[Any, ...]:
    where = stream["socket"], stream["worker"]
    if stream["state"] == "detached":
        return *where, stream["place"]
    return *where, stream["link"], stream["slot"], stream["name"]


def _number(value: float | None) -> str:
    """Return a number in at most seven characters."""
    if value is None:
        return ""
    for most, unit in ((1e5, ""), (1e8, "k"), (1e11, "M")):
        if value < most:
            return f"{value / (most / 1e5):,.0f}{unit}"
    return f"{value / 1e9:,.0f}G"


def _bytes(count: int) -> str:
    """Return bytes in at most eight characters."""
    if count < 1000:
        return f"{count} B"
    value, units = count / 1024, ["KiB", "MiB", "GiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.0f} {units[0]}" if value >= 100 else f"{value:.3g} {units[0]}"
