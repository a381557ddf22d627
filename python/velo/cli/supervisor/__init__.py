"""`velo supervisor`: the worker pool as a service that programs share."""

from __future__ import annotations

import click

from velo.cli.supervisor.control import drain, logs, restart, stop
from velo.cli.supervisor.start import start
from velo.cli.supervisor.status import supervisor_status

__all__ = ["supervisor"]


@click.group(short_help="Share one pool of workers among programs.")
def supervisor() -> None:
    """Run a supervisor whose worker processes several programs share.

    \b
      velo supervisor start --workers 4 --detach
      VELO_SUPERVISOR=daemon uvicorn app:app --workers 4
      velo supervisor status

    A program uses it where `VELO_SUPERVISOR`, or `StreamConfig(supervisor=...)`, says so: "daemon"
    for the default socket, or a path.
    """  # noqa: D301
    # (Click leaves lines alone that stand below a backspace: the docstring has to hold one.)


for command in (start, supervisor_status, drain, stop, restart, logs):
    supervisor.add_command(command)
