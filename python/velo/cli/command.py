"""The `velo` command and its subcommands."""

from __future__ import annotations

import click

from velo import __version__
from velo.cli.bench import bench
from velo.cli.checkpoint import checkpoint
from velo.cli.dead_letter import dead_letter
from velo.cli.doctor import doctor
from velo.cli.replay import replay
from velo.cli.run import record, run
from velo.cli.supervisor import supervisor
from velo.cli.supervisor.inspect import inspect
from velo.cli.supervisor.status import status
from velo.cli.supervisor.top import top

__all__ = ["velo"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88})
@click.version_option(__version__, message="velo %(version)s")
def velo() -> None:
    """Stateful stream functions, from the command line."""


velo.add_command(run)
velo.add_command(record)
velo.add_command(replay)
velo.add_command(dead_letter)
velo.add_command(checkpoint)
velo.add_command(bench)
velo.add_command(supervisor)
velo.add_command(status)
velo.add_command(inspect)
velo.add_command(top)
velo.add_command(doctor)
