"""`velo inspect`: the stack and the local variables of a stream's function."""

from __future__ import annotations

import json
from typing import Any

import click
import orjson

from velo.cli.errors import Failure
from velo.cli.supervisor.figures import joined, with_lanes
from velo.cli.supervisor.overview import Overview, which_supervisors
from velo.cli.supervisor.status import lane_lines
from velo.cli.text import echo, inline
from velo.cli.units import duration

__all__ = ["inspect", "looked_up"]


@click.command(short_help="Show one stream or key: where its function is, and its variables.")
@click.argument("stream")
@click.option("--key", metavar="K", help="Show this key of the function (or lane) STREAM.")
@which_supervisors
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
def inspect(
    stream: str, key: str | None, socket: str | None, pid: int | None, as_json: bool
) -> None:
    """Show where a live stream stands: its function's line and local variables, queue, last error.

    \b
      velo inspect spent-3          a stream, by the name that `velo status` shows
      velo inspect spent --key ann  a key of `keyed` or `open(key=...)`
      velo inspect ann              the same for every function that has the key

    STREAM may also be LINK:SLOT as in `velo status --json`. A key that is no string is written as
    its `repr`. Names are unique within a program only, and all that fit are shown. Values are
    shown as their `repr`, cut short.

    The worker answers between two steps of its functions. One that is held by a function does not:
    its stack is shown instead. Exit code 1: there is no such stream.
    """  # noqa: D301
    # (Click leaves lines alone that stand below a backspace: the docstring has to hold one.)
    overview = Overview(socket, pid)

    found, stuck, labels = looked_up(overview, stream, key)
    if as_json:
        click.echo(orjson.dumps({"streams": found, "stuck": stuck}, option=orjson.OPT_INDENT_2))
    else:
        for one in found:
            _show(one)
        if not found:
            for worker in stuck:
                _show_stuck(worker)
    if not found and not stuck:
        where = labels[0] if len(labels) == 1 else f"any of {len(labels)} supervisors"
        what = f"stream `{stream}`" if key is None else f"key `{key}` of `{stream}`"
        raise Failure(f"no {what} is open at {where}; `velo status` shows what is open")


def looked_up(
    overview: Overview, stream: str, key: str | None, socket: str | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Ask for a stream or a key.

    Args:
        overview: The supervisors.
        stream: The name or address of a stream, a key, or the function of `key`.
        key: A key of the function.
        socket: The only supervisor whose answer counts; None: all.

    Returns:
        The streams; the workers that do not answer, with their stacks; the supervisors' names.

    Raises:
        Failure: When there is no supervisor to ask.

    """
    asked = overview.ask(
        lambda connection, _: connection.supervisor.inspect(stream, key),
        lambda connection, _: connection.look(),
    )
    if not asked:
        raise Failure(overview.nothing())
    looks = [one for there, said in asked if socket in (None, there.path) for one in said]
    found = [one for look in looks for one in _found(look)]
    stuck = [
        {
            "worker": look["worker"],
            "pid": look["pid"],
            "stack": look["stack"],
            "streams": [one for one in joined(look, {}) if one["running"]],
        }
        for look in looks
        if look["answer"] is None
    ]
    return found, stuck, [there.label for there, _ in asked]


def _found(look: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the streams that the worker was asked for, and that it knows."""
    said = json.loads(look["answer"])["streams"] if look["answer"] else []
    told = {(one["link"], one["slot"]): one for one in said if "link" in one}
    lanes = [one["figures"] for one in said if "figures" in one]
    streams = with_lanes(joined(look, told), lanes)
    for stream in streams:
        stream.pop("figures", None)
        stream.pop("in_ring", None)
    seen = {(one["link"], one["slot"]): one for one in streams}
    place = {"worker": look["worker"], "pid": look["pid"]}
    # A stream that has ended since has no figures any more.
    return [seen.get((one.get("link"), one.get("slot")), {**one, **place}) for one in said]


def _show(one: dict[str, Any]) -> None:
    _line(f"{one['name']}: {one['state']}")
    if "function" in one:
        _line(f"  function  {one['function']}")
        age = "" if one.get("age") is None else f", for {duration(one['age'])}"
        _line(f"  worker    {one['worker']} (pid {one['pid']}){age}")
    if one.get("key") is not None:
        _line(f"  key       {one['key']}")
    if "lane" in one:
        _line(f"  lane      {one['lane']}")
    if one.get("detached") is not None:
        _line(f"  detached  for {duration(one['detached'])}")
    if "file" in one:
        _line(f"  at        {one['file']}:{one['line']}")
    for what in one.get("waits_for", ()):
        _line(f"  awaits    {what}")
    if one.get("events") is not None:
        handled = one["events"] - one["queued"]
        _line(f"  events    {handled} handled, {one['queued']} waiting or in hand")
    if one.get("results") is not None:
        _line(f"  results   {one['results']}, {one['results_queued']} in the ring")
    if one.get("keys") is not None:
        for text in lane_lines(one["keys"]):
            _line(f"  {text}")
    if one.get("error"):
        _line(f"  error     {one['error']}")
    if "locals" in one:
        width = max(map(len, one["locals"]), default=0)
        _line("  locals")
        for name, value in one["locals"].items():
            _line(f"    {name:{width}} = {value}")


def _show_stuck(worker: dict[str, Any]) -> None:
    which = ", ".join(
        f"slot {one['link']}:{one['slot']}, at event {one['running_event']}"
        for one in worker["streams"]
    )
    why = f"a function holds it ({which})" if which else "something holds its event loop"
    echo(f"worker {worker['worker']} (pid {worker['pid']}) does not answer: {why}")
    echo(worker["stack"] or "  (it has not written its stack)")


def _line(text: str) -> None:
    # Names, keys, values and errors are made of events.
    click.echo(inline(text))
