"""The `velo` command and its subcommands."""

from __future__ import annotations

import click

from velo import __version__, _core
from velo.cli.bench import bench
from velo.cli.checkpoint import checkpoint
from velo.cli.dead_letter import dead_letter
from velo.cli.deploy import deploy
from velo.cli.doctor import doctor
from velo.cli.errors import Failure
from velo.cli.replay import replay
from velo.cli.run import record, run

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
velo.add_command(deploy)
velo.add_command(doctor)

if _core.PROCESS_MODE:
    from velo.cli.dashboard import dashboard
    from velo.cli.supervisor import supervisor
    from velo.cli.supervisor.inspect import inspect
    from velo.cli.supervisor.status import status
    from velo.cli.supervisor.top import top

    velo.add_command(supervisor)
    velo.add_command(status)
    velo.add_command(inspect)
    velo.add_command(top)
    velo.add_command(dashboard)
else:
    _takes_anything = {"ignore_unknown_options": True, "allow_extra_args": True}

    @click.pass_context
    def _absent(context: click.Context) -> None:
        raise Failure(
            f"`velo {context.info_name}` is about process mode, which this build does not have: it "
            "needs Linux"
        )

    for _name in ("supervisor", "status", "inspect", "top", "dashboard"):
        velo.add_command(
            click.Command(
                _name,
                callback=_absent,
                hidden=True,
                add_help_option=False,
                context_settings=_takes_anything,
            )
        )
