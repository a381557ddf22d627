"""The commands that control a running supervisor."""

from __future__ import annotations

import contextlib

import click

from velo import _core
from velo.cli.errors import Failure
from velo.cli.supervisor.admin_connection import AdminConnection, socket_option
from velo.cli.text import inline

__all__ = ["drain", "logs", "restart", "stop"]

# The seconds that the supervisor may take to end, beyond the time limit of the streams.
_SLACK = 10.0

_SECONDS = click.FloatRange(min=0)


@click.command(short_help="Take no new streams; end it with the last open one.")
@socket_option
@click.option(
    "--timeout",
    type=_SECONDS,
    metavar="S",
    help="Cancel streams that are still open after this time.",
)
@click.option("--no-wait", is_flag=True, help="Return at once, and not when it has ended.")
def drain(socket: str | None, timeout: float | None, no_wait: bool) -> None:
    """Take no new streams, and end when the last open one has ended."""
    _end(socket, timeout, wait=not no_wait)


@click.command(short_help="End it within a time limit.")
@socket_option
@click.option(
    "--timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Cancel streams that are still open after this time.",
)
def stop(socket: str | None, timeout: float) -> None:
    """Take no new streams, give open ones some time to end, and end."""
    _end(socket, timeout, wait=True)


def _end(socket: str | None, bound: float | None, *, wait: bool) -> None:
    connection = AdminConnection(socket)
    connection.supervisor.drain(bound)
    with contextlib.suppress(Failure):  # a supervisor without streams may end before it answers
        connection.answer()
    if wait and not connection.end(None if bound is None else bound + _SLACK):
        raise Failure(f"the supervisor at `{connection.path}` has not ended within {bound:g} s")


@click.command(short_help="Replace its workers, without cutting a stream.")
@socket_option
def restart(socket: str | None) -> None:
    """Replace every worker, and the process that they are forked from, without cutting a stream.

    New streams go to new workers, which import modules anew; old workers end with their last
    stream. The supervisor itself goes on.
    """
    connection = AdminConnection(socket)
    connection.supervisor.restart()
    connection.answer()


@click.command(short_help="Show its log.")
@socket_option
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until Ctrl-C.")
def logs(socket: str | None, follow: bool) -> None:
    """Show the last lines of the supervisor's log, wherever else that goes."""
    connection = AdminConnection(socket)
    connection.supervisor.logs(follow)
    for text in connection.answer():
        click.echo(inline(text))
    while follow:
        for report in connection.hear(None):
            match report:
                case _core.Report.Log(lines=lines):
                    for text in lines:
                        click.echo(inline(text))
                case _core.Report.Lost():
                    return
