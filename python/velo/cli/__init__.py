"""The `velo` command. Nothing outside this package imports click or rich.

Exit codes: 0 done, 1 failed, 2 called wrongly, 128 + the signal's number when a signal ended it.
"""

from __future__ import annotations

import signal
import sys

import click

from velo import __version__
from velo.cli.bench import bench
from velo.cli.doctor import doctor
from velo.cli.replay import replay
from velo.cli.run import record, run
from velo.cli.supervisor import supervisor
from velo.cli.supervisor.inspect import inspect
from velo.cli.supervisor.status import status
from velo.cli.supervisor.top import top

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88})
@click.version_option(__version__, message="velo %(version)s")
def velo() -> None:
    """Stateful stream functions, from the command line."""


velo.add_command(run)
velo.add_command(record)
velo.add_command(replay)
velo.add_command(bench)
velo.add_command(supervisor)
velo.add_command(status)
velo.add_command(inspect)
velo.add_command(top)
velo.add_command(doctor)


def main() -> None:
    """Run the command that `sys.argv` names, and exit."""
    try:
        code = velo.main(prog_name="velo", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        _say(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    # All is written. The exit bounds itself; an impatient Ctrl-C could only make it untidy.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _say(error: click.ClickException) -> None:
    message = error.format_message()
    click.echo(f"velo: {message[:1].lower()}{message[1:]}", err=True)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"try `{error.ctx.command_path} --help`", err=True)
