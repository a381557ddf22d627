"""The commands that speak to a supervisor that runs."""

from __future__ import annotations

import contextlib
import json
import select
import time
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from velo import _core
from velo.cli.errors import Failure
from velo.cli.supervisor.start import socket_of
from velo.errors import PoolError

__all__ = ["drain", "logs", "restart", "status", "stop"]

# How many seconds a supervisor may take to answer.
_BOUND = 10.0
# What the supervisor may take to end beyond the bound that streams have.
_SLACK = 10.0

_socket = click.option(
    "--socket", metavar="PATH", help="Where it listens. [default: as for `start`]"
)
_SECONDS = click.FloatRange(min=0)


class _Line:
    """A connection to a supervisor, one order at a time."""

    def __init__(self, socket: str | None) -> None:
        path = socket_of(socket) or str(_core.default_socket())
        try:
            self.supervisor = _core.SupervisorClient.connect(path)
        except ConnectionError as error:
            raise Failure(f"{error}") from None
        except PoolError as error:
            raise Failure(str(error)) from None
        self.path = path

    def hear(self, bound: float | None) -> list[tuple[Any, ...]]:
        """Wait for what the supervisor says next; nothing when the bound, in seconds, is over."""
        if not select.select([self.supervisor.fileno()], [], [], bound)[0]:
            return []
        try:
            return self.supervisor.poll()
        except PoolError as error:
            raise Failure(str(error)) from None

    def answer(self) -> Any:
        """Wait for the answer to an order."""
        deadline = time.monotonic() + _BOUND
        while (left := deadline - time.monotonic()) > 0:
            for what, *rest in self.hear(left):
                if what in ("status", "log"):
                    return rest[0]
                if what == "done":
                    return None
                if what == "unable":
                    raise Failure(f"the supervisor at `{self.path}` cannot do that: {rest[0]}")
                if what == "lost":
                    raise Failure(f"the supervisor at `{self.path}` has hung up")
        raise Failure(f"the supervisor at `{self.path}` did not answer within {_BOUND:g} s")

    def end(self, bound: float | None) -> bool:
        """Wait until the supervisor has ended; whether it has."""
        deadline = None if bound is None else time.monotonic() + bound
        while deadline is None or time.monotonic() < deadline:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if any(what == "lost" for what, *_ in self.hear(left)):
                return True
        return False


@click.command(short_help="Show what it does.")
@_socket
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
def status(socket: str | None, as_json: bool) -> None:
    """Show the supervisor, its workers and its clients. Exit code 1: none runs."""
    line = _Line(socket)
    line.supervisor.status()
    state = json.loads(line.answer())
    if as_json:
        click.echo(orjson.dumps({"socket": line.path, **state}, option=orjson.OPT_INDENT_2))
    else:
        _show(line.path, state)


def _show(path: str, state: dict[str, Any]) -> None:
    console = Console(highlight=False)
    most = state["max_workers"] or "any number"
    console.print(
        f"supervisor (pid {state['pid']}) at {path}, velo {state['velo']} on {state['runtime']}\n"
        f"up {_duration(state['uptime'])}, {state['min_workers']} to {most} workers"
        + (", draining" if state["draining"] else ""),
        markup=False,
    )
    workers = Table("worker", "pid", "streams", "links", "", title_justify="left")
    for worker in state["workers"]:
        how = "stopping" if worker["stopping"] else "retiring" if worker["retiring"] else ""
        figures = (worker[name] for name in ("id", "pid", "residents", "links"))
        workers.add_row(*map(str, figures), how)
    clients = Table("client", "pid", "streams", "links", "connected")
    for client in state["clients"]:
        figures = (client[name] for name in ("id", "pid", "streams", "links"))
        clients.add_row(*map(str, figures), _duration(client["connected"]))
    console.print(workers)
    console.print(clients)


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@click.command(short_help="End it with its last stream.")
@_socket
@click.option("--timeout", type=_SECONDS, metavar="S", help="Cancel streams that take longer.")
@click.option("--no-wait", is_flag=True, help="Return at once.")
def drain(socket: str | None, timeout: float | None, no_wait: bool) -> None:
    """Take no new streams, and end when the last open one has ended."""
    _end(socket, timeout, wait=not no_wait)


@click.command(short_help="End it soon.")
@_socket
@click.option(
    "--timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Give open streams so long, then cancel them.",
)
def stop(socket: str | None, timeout: float) -> None:
    """Take no new streams, give open ones some time to end, and end."""
    _end(socket, timeout, wait=True)


def _end(socket: str | None, bound: float | None, *, wait: bool) -> None:
    line = _Line(socket)
    line.supervisor.drain(bound)
    with contextlib.suppress(Failure):  # one without streams may end before it answers
        line.answer()
    if wait and not line.end(None if bound is None else bound + _SLACK):
        raise Failure(f"the supervisor at `{line.path}` has not ended within {bound:g} s")


@click.command(short_help="Replace its workers.")
@_socket
def restart(socket: str | None) -> None:
    """Replace every worker, and the process that they are forked from, without cutting a stream.

    New streams go to new workers, which import modules anew; old workers end with their last
    stream. The supervisor itself goes on.
    """
    line = _Line(socket)
    line.supervisor.restart()
    line.answer()


@click.command(short_help="Show its log.")
@_socket
@click.option("-f", "--follow", is_flag=True, help="Until it ends, or Ctrl-C.")
def logs(socket: str | None, follow: bool) -> None:
    """Show the last lines of the supervisor's log, wherever else that goes."""
    line = _Line(socket)
    line.supervisor.logs(follow)
    for text in line.answer():
        click.echo(text)
    while follow:
        for what, *rest in line.hear(None):
            if what == "log":
                for text in rest[0]:
                    click.echo(text)
            elif what == "lost":
                return
