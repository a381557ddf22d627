"""The `velo` command and its subcommands."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import click

from velo import __version__, _core
from velo.cli.errors import Failure, NobodyReads

__all__ = ["velo"]

# Where each subcommand is: the command of its name in this module.
_SUBCOMMANDS = {
    "bench": "velo.cli.bench",
    "checkpoint": "velo.cli.checkpoint",
    "dead-letter": "velo.cli.dead_letter",
    "deploy": "velo.cli.deploy",
    "doctor": "velo.cli.doctor",
    "record": "velo.cli.run",
    "replay": "velo.cli.replay",
    "run": "velo.cli.run",
}
_OF_PROCESS_MODE = {
    "dashboard": "velo.cli.dashboard",
    "inspect": "velo.cli.supervisor.inspect",
    "status": "velo.cli.supervisor.status",
    "supervisor": "velo.cli.supervisor",
    "top": "velo.cli.supervisor.top",
}
_PRESENT = {**_SUBCOMMANDS, **_OF_PROCESS_MODE} if _core.PROCESS_MODE else _SUBCOMMANDS


@contextlib.contextmanager
def _noticing_who_reads() -> Iterator[None]:
    """Raise `NobodyReads` where click, or rich, would end the process with exit code 1."""
    try:
        yield
    except BrokenPipeError as error:
        raise NobodyReads from error
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            raise NobodyReads from end
        raise


class _Subcommands(click.Group):
    """Imports a subcommand when it is called, because all of them take half a second."""

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _noticing_who_reads():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _noticing_who_reads():
            return super().invoke(ctx)

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(_PRESENT)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name in _PRESENT:
            module = importlib.import_module(_PRESENT[name])
            command: click.Command = getattr(module, name.replace("-", "_"))
            return command
        return _absent(name) if name in _OF_PROCESS_MODE else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # of all calls, only this one needs it

            # Click names those that resemble it where it knows all of them.
            like = difflib.get_close_matches(name, _PRESENT, n=1)
            meant = f" Did you mean '{like[0]}'?" if like else ""
            raise click.UsageError(error.message + meant, ctx) from None


def _absent(name: str) -> click.Command:
    """Make a subcommand of process mode for a build without it: it says so."""

    def fail() -> None:
        raise Failure(
            f"`velo {name}` is about process mode, which this build does not have: it needs Linux"
        )

    takes_anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        name, callback=fail, add_help_option=False, context_settings=takes_anything
    )


@click.group(
    cls=_Subcommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
)
@click.version_option(__version__, message="velo %(version)s")
def velo() -> None:
    """Stateful stream functions, from the command line."""
