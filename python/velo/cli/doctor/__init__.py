"""`velo doctor`: whether this machine lets velo work, and what to change."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from velo import __version__, _core
from velo.cli.doctor import owners, works
from velo.cli.doctor.check import FAIL, OK, WARN, Check

__all__ = ["doctor"]

CHECKS: tuple[Callable[[], Check], ...]
if _core.PROCESS_MODE:
    from velo.cli.doctor import kernel, leftovers, limits, machine

    CHECKS = (
        works.python,
        owners.package,
        works.stream,
        machine.cores,
        machine.memory,
        machine.overcommit,
        limits.open_files,
        limits.processes,
        limits.address_space,
        limits.file_size,
        kernel.sealed_memory,
        kernel.doorbells,
        kernel.process_handles,
        kernel.passed_descriptors,
        kernel.socket_options,
        kernel.signal_stacks,
        leftovers.shared_memory,
        leftovers.runtime_folder,
        leftovers.processes,
    )
else:
    CHECKS = (works.python, owners.package, works.modes, works.inline_stream)

_MARKS = {OK: "[green]ok[/]", WARN: "[yellow]look[/]", FAIL: "[red bold]fails[/]"}


@click.command(short_help="Check whether this machine lets velo work, and say what to change.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object, with all checks.")
def doctor(as_json: bool) -> None:
    """Check the limits, the kernel and the leftovers of this machine, and run a stream on it.

    A check marked `fails` keeps velo from working, and makes the exit code 1. With one marked
    `look`, velo works with less than the machine could give.
    """
    console = Console(emoji=False)
    if as_json or not console.is_terminal:
        checks = list(examine())
    else:
        with console.status("looking"):
            checks = list(examine())
    if as_json:
        whole = {
            "velo": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "works": all(check.verdict != FAIL for check in checks),
            "checks": [check.as_dict() for check in checks],
        }
        click.echo(json.dumps(whole, indent=2))
    else:
        show(console, checks)
    if any(check.verdict == FAIL for check in checks):
        raise click.exceptions.Exit(1)


def examine() -> Iterator[Check]:
    """Run every check; a check that raises is reported, and the others run all the same."""
    for check in CHECKS:
        try:
            yield check()
        except Exception as error:
            name = check.__name__.replace("_", " ")
            advice = "look at it yourself: `velo doctor` does not know what this machine is"
            yield Check(name, WARN, f"could not be looked at: {error!r}", advice)


def show(console: Console, checks: list[Check]) -> None:
    """Print one table, with the advice below each finding."""
    system = f"{platform.system()} {platform.release()}"
    console.print(
        f"velo {__version__}, Python {platform.python_version()}, {system}", highlight=False
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        found = escape(check.found)
        if check.advice:
            found += f"\n[bold]{escape(check.advice)}[/]"
        table.add_row(_MARKS[check.verdict], check.name, found)
    console.print(table)
    failing = sum(check.verdict == FAIL for check in checks)
    looking = sum(check.verdict == WARN for check in checks)
    if failing:
        console.print(f"[red bold]velo does not work here[/]: {failing} of {len(checks)} fail")
    elif looking:
        console.print(f"velo works here; {looking} of {len(checks)} could be better")
    else:
        console.print("[green]velo works here[/], nothing to change")
