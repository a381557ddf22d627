"""`velo inspect`: where the function of a stream stands, and with what."""

from __future__ import annotations

import json
from typing import Any

import click
import orjson

from velo.cli.errors import Failure
from velo.cli.supervisor.figures import joined
from velo.cli.supervisor.overview import Overview, which_supervisors
from velo.cli.supervisor.status import duration
from velo.cli.text import echo, inline

__all__ = ["inspect"]


@click.command(short_help="Show where a stream's function stands.")
@click.argument("stream")
@which_supervisors
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
def inspect(stream: str, socket: str | None, pid: int | None, as_json: bool) -> None:
    """Show a live stream: its function's line and local variables, its queue, its last error.

    STREAM is a name that `velo status` shows, the key of a session, attached or detached, or
    LINK:SLOT as in `velo status --json`; names are unique within a program only, and all streams
    with that name or key are shown. Values are shown as their `repr`, cut short.

    The worker answers between two steps of its functions. One that is held by a function does not:
    its stack is shown instead. Exit code 1: there is no such stream.
    """
    overview = Overview(socket, pid)

    asked = overview.ask(
        lambda line, _: line.supervisor.inspect(stream), lambda line, _: line.look()
    )
    if not asked:
        raise Failure(overview.nothing())
    looks = [one for _, said in asked for one in said]
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
    if as_json:
        click.echo(orjson.dumps({"streams": found, "stuck": stuck}, option=orjson.OPT_INDENT_2))
    else:
        for one in found:
            _show(one)
        if not found:
            for worker in stuck:
                _show_stuck(worker)
    if not found and not stuck:
        labels = [line.label for line, _ in asked]
        where = labels[0] if len(labels) == 1 else f"any of {len(labels)} supervisors"
        raise Failure(f"no stream `{stream}` is open at {where}; `velo status` shows what is open")


def _found(look: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the streams that the worker was asked for, and that it knows."""
    said = json.loads(look["answer"])["streams"] if look["answer"] else []
    told = {(one["link"], one["slot"]): one for one in said if "link" in one}
    seen = {(one["link"], one["slot"]): one for one in joined(look, told)}
    place = {"worker": look["worker"], "pid": look["pid"]}
    # What has ended has no figures any more.
    return [seen.get((one.get("link"), one.get("slot")), {**one, **place}) for one in said]


def _show(one: dict[str, Any]) -> None:
    _line(f"{one['name']}: {one['state']}")
    if "function" in one:
        _line(f"  function  {one['function']}")
        _line(f"  worker    {one['worker']} (pid {one['pid']}), for {duration(one['age'])}")
    if one.get("key") is not None:
        _line(f"  key       {one['key']}")
    if one.get("detached") is not None:
        _line(f"  detached  for {duration(one['detached'])}")
    if "file" in one:
        _line(f"  at        {one['file']}:{one['line']}")
    for what in one.get("waits_for", ()):
        _line(f"  awaits    {what}")
    if one.get("events") is not None:
        handled = one["events"] - one["queued"]
        _line(f"  events    {handled} handled, {one['queued']} in the ring or in hand")
        _line(f"  results   {one['results']}, {one['results_queued']} in the ring")
    if one["error"]:
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
