"""`velo status`: supervisors, their workers, their clients and their streams, once."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
import orjson
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from velo.cli.children import children
from velo.cli.errors import Failure
from velo.cli.supervisor.admin_connection import AdminConnection, socket_option
from velo.cli.supervisor.overview import Overview, which_supervisors
from velo.cli.text import echo, inline
from velo.cli.units import duration, latency, size

__all__ = [
    "condition",
    "lane_lines",
    "slow_key",
    "status",
    "stored",
    "supervisor_status",
]

# The seconds between the two looks that rates are computed from.
_WATCHED = 0.25
# The width of lines, in characters, if the output is no terminal.
_WIDE = 200
# The columns with words; the other columns have numbers.
_WORDS = (
    *("stream", "lane", "key", "state", "function", "started by functions"),
    *("slowest key", ""),
)
# The most streams in the tables; `--json` has all of them.
_MOST_SHOWN = 50


_json_option = click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")


@click.command(short_help="Show worker processes and their streams, once.")
@which_supervisors
@_json_option
def status(socket: str | None, pid: int | None, as_json: bool) -> None:
    """Show what runs in worker processes: of this user's programs, and of a shared supervisor.

    For each of them: its workers, its streams with their figures, its keys, and the processes that
    functions have started there. Rates are those of a quarter of a second. `--json` prints
    {"supervisors": [...]}, or the one object if an option names one. Exit code 1: nothing runs.
    """
    overview = Overview(socket, pid)
    states = _look(overview)
    if not states and not as_json:
        raise Failure(overview.nothing())
    if as_json:
        shown = states[0] if overview.single else {"supervisors": states}
        click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
        if not states:
            raise click.exceptions.Exit(1)
    for number, state in enumerate([] if as_json else states):
        if number:
            click.echo()
        _show(state)
    if not as_json:
        for program, why in overview.refused.items():
            echo(f"velo: process {program} is not shown: {why}", err=True)


@click.command("status", short_help="Show its workers, clients and streams, once.")
@socket_option
@_json_option
def supervisor_status(socket: str | None, as_json: bool) -> None:
    """Show the supervisor, its workers, its clients and their streams. Exit code 1: none runs.

    Rates are those of a quarter of a second. `velo status` shows programs with a supervisor of
    their own as well.
    """
    (state,) = _look(Overview(AdminConnection(socket).path, None))
    if as_json:
        click.echo(orjson.dumps(state, option=orjson.OPT_INDENT_2))
    else:
        _show(state)


def _look(overview: Overview) -> list[dict[str, Any]]:
    overview.look()
    while not overview.complete:
        overview.look()
    time.sleep(_WATCHED)
    states = overview.look()
    started = list(children())
    for state in states:
        served = (child for child in started if child.served == state["pid"])
        state["children"] = [child._asdict() for child in served]
    return states


def _head(state: dict[str, Any]) -> str:
    if state["embedded"]:
        head = f"{state['program']} (pid {state['pid']}), velo {state['velo']}"
        return f"{inline(head)}\nup {duration(state['uptime'])}, with a supervisor of its own"
    most = state["max_workers"] or "any number"
    return (
        f"supervisor (pid {state['pid']}) at {state['socket']}, velo {state['velo']} on "
        f"{state['runtime']}\n"
        f"up {duration(state['uptime'])}, {state['min_workers']} to {most} workers"
        + (", draining" if state["draining"] else "")
        + ("" if state["checkpoint"] is None else f"\n{inline(stored(state['checkpoint']))}")
    )


def stored(checkpoint: dict[str, Any]) -> str:
    """Return how fresh the checkpoint of a supervisor is, and what is not in it yet."""
    made, since = checkpoint["made"], checkpoint["unsaved_since"]
    tick = "no tick yet" if made is None else f"last tick {_ago(made)} ago"
    text = f"checkpoint {checkpoint['path']}, {tick}"
    if checkpoint["error"] is None or since is None:
        return text
    unsaved = f"{checkpoint['unsaved']:,} states are not stored, for {_ago(since)}"
    return f"{text}; {unsaved}: {checkpoint['error']}"


def _ago(moment: float) -> str:
    return duration(max(0.0, time.time() - moment))


def _show(state: dict[str, Any]) -> None:
    # Output to a file or a pipe is not cut to the width of a terminal.
    console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
    console.print(_head(state), markup=False)
    workers = _table(
        "worker", "pid", "cpu %", "memory", "streams", "links", "events/s", "queue", "events", ""
    )
    for worker in state["workers"]:
        figures = (worker[name] for name in ("events_per_second", "queued", "events"))
        workers.add_row(
            *(str(worker[name]) for name in ("id", "pid")),
            "" if worker["cpu"] is None else f"{worker['cpu']:.0f}",
            size(worker["memory"]),
            *(str(worker[name]) for name in ("residents", "links")),
            *("" if figure is None else f"{figure:.0f}" for figure in figures),
            condition(worker),
        )
    clients = _table("client", "pid", "streams", "links", "connected")
    for client in state["clients"]:
        known = (client[name] for name in ("id", "pid", "streams", "links"))
        clients.add_row(*map(str, known), duration(client["connected"]))
    columns = ("function", "worker", "age", "events", "events/s", "queue", "p50", "p99")
    keyed = any(stream["key"] is not None for stream in state["streams"])
    streams = _table("stream", *(["key"] if keyed else []), *columns)
    busiest = sorted(state["streams"], key=lambda stream: -stream["events"])
    for stream in busiest[:_MOST_SHOWN]:
        rate = stream["events_per_second"]
        streams.add_row(
            _words(inline(stream["name"] or f"{stream['link']}:{stream['slot']}")),
            *([_words(inline(stream["key"] or ""))] if keyed else []),
            _words(inline(stream["function"] or "?")),
            str(stream["worker"]),
            "" if stream["age"] is None else duration(stream["age"]),
            str(stream["events"]),
            "" if rate is None else f"{rate:.0f}",
            str(stream["queued"]),
            latency(stream["latency_p50"]),
            latency(stream["latency_p99"]),
        )
    for table in (workers, clients, streams, *_lane_tables(state)):
        # Its clients are its own event loops.
        if table is not clients or not state["embedded"]:
            console.print(table)
    left = len(busiest) - _MOST_SHOWN + state["streams_omitted"]
    if left > 0:
        console.print(f"and {left} more streams; `--json` or `velo top` show more")
    _show_children(console, state)
    _show_detached(console, state)


def _lane_tables(state: dict[str, Any]) -> list[Table]:
    """Return the streams that run the keys of a function, if there are any."""
    lanes = [stream for stream in state["streams"] if stream["keys"]]
    if not lanes:
        return []
    columns = ("worker", "keys", "opened", "ended", "evicted", "pending", "slowest key")
    table = _table("lane", "function", *columns)
    for stream in sorted(lanes, key=lambda stream: -stream["keys"]["live"])[:_MOST_SHOWN]:
        keys = stream["keys"]
        table.add_row(
            _words(inline(stream["name"] or "?")),
            _words(inline(stream["function"] or "?")),
            str(stream["worker"]),
            *(str(keys[name]) for name in ("live", "opened", "ended", "evicted", "pending")),
            _words(slow_key(keys["slowest"][0]) if keys["slowest"] else ""),
        )
    return [table]


def slow_key(slow: dict[str, Any]) -> str:
    """Return the text about a slow key: the key, the time, the event."""
    what = "at its event" if slow["awaits"] else "in one step"
    return inline(f"{slow['key']}: {latency(1e6 * slow['seconds'])} {what}")


def lane_lines(keys: dict[str, Any]) -> list[str]:
    """Return the figures of the keys of a lane, as text."""
    counts = ", ".join(f"{keys[name]} {name}" for name in ("live", "opened", "ended", "evicted"))
    slow = [f"slow      {slow_key(one)}" for one in keys["slowest"]]
    return [f"keys      {counts}", *slow]


def _show_children(console: Console, state: dict[str, Any]) -> None:
    if not state["children"]:
        return
    table = _table("started by functions", "pid", "worker pid", "")
    for child in state["children"][:_MOST_SHOWN]:
        known = (str(child[name]) for name in ("pid", "worker"))
        table.add_row(_words(child["command"]), *known, "" if child["alive"] else "worker gone")
    console.print(table)


def _show_detached(console: Console, state: dict[str, Any]) -> None:
    if state["waiting"]:
        console.print(f"requests that wait for a key: {state['waiting']}")
    if not state["detached_sessions"]:
        return
    table = _table("key", "state", "function", "worker", "pid", "detached for", "age")
    longest = sorted(state["detached_sessions"], key=lambda stream: -stream["detached"])
    for stream in longest[:_MOST_SHOWN]:
        table.add_row(
            _words(inline(stream["key"])),
            stream["state"],
            _words(inline(stream["function"])),
            *(str(stream[name]) for name in ("worker", "pid")),
            *(duration(stream[name]) for name in ("detached", "age")),
        )
    console.print(table)
    left = state["detached"] - min(len(longest), _MOST_SHOWN)
    if left > 0:
        console.print(f"and {left} more detached sessions; `--json` or `velo top` show more")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        if name in _WORDS:
            # Columns that may wrap are narrowed first: a figure says nothing when it is cut.
            table.add_column(_words(name))
        else:
            table.add_column(name, justify="right", no_wrap=True, overflow="ellipsis")
    return table


def _words(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def condition(worker: dict[str, Any]) -> str:
    """Return the special state of a worker in a word."""
    if worker["stopping"]:
        return "stopping"
    if worker["retiring"]:
        return "retiring"
    return "" if worker["answers"] else "busy"
