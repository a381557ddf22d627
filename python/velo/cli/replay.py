"""`velo replay`: runs recorded streams again, and shows the first difference."""

from __future__ import annotations

import contextlib
import os
import pprint
from pathlib import Path
from typing import Any

import click

from velo import StreamFn
from velo.cli import hash_seed
from velo.cli.errors import Failure
from velo.cli.target import load_target
from velo.cli.text import block, echo, inline
from velo.testing import Recording, Replay, load_recording, recordings
from velo.testing._replay import again

__all__ = ["replay"]

# With more streams than that, only the streams with a difference are shown one by one.
_FEW = 20


@click.command(short_help="Run recorded streams again, and show the first difference.")
@click.argument("paths", nargs=-1, required=True, metavar="FILE|FOLDER...")
@click.option(
    "--function",
    "target",
    metavar="MODULE_OR_FILE:FUNCTION",
    help="Run this one instead of the one that was recorded.",
)
@click.option(
    "--until",
    type=click.IntRange(min=0),
    metavar="N",
    help="Stop after N events, and show results and local variables there.",
)
@click.option("--trust", is_flag=True, help="Run code that the recordings hold, or name.")
@click.pass_context
def replay(
    context: click.Context,
    /,
    paths: tuple[str, ...],
    target: str | None,
    until: int | None,
    trust: bool,
) -> None:
    """Run recorded streams again, as the function is now, and show the first difference of each.

    Recordings are made by `velo record`, and by `fn.options(record=FOLDER)`. The function runs in
    this process, and waits for nothing. The exit code is 1 if any stream differs from its
    recording.

    Reading a recording runs no code of it. A recording that holds pickled values, or whose function
    is in a file outside of the working directory, needs --trust: give it only for recordings from a
    source that you trust. The hash seed is that of the recordings.
    """
    fn = None if target is None else load_target(target)
    found = recordings(*paths)
    if not found:
        raise click.UsageError("there is no recording in " + ", ".join(f"`{p}`" for p in paths))
    if until is not None and len(found) > 1:
        raise click.UsageError(f"`--until` is for one recording, and there are {len(found)}")
    _have_seed_of(found, trust)
    different = 0
    outcome = None
    for path in found:
        if outcome is not None and outcome.difference is not None:
            click.echo()
        recording, outcome = _again(os.fspath(path), fn, until, trust)
        different += outcome.difference is not None
        if len(found) <= _FEW or outcome.difference is not None:
            _show(recording, outcome, until)
    if len(found) > 1:
        click.echo(f"{len(found):,} streams, {different:,} different")
    context.exit(1 if different else 0)


def _have_seed_of(found: list[Path], trust: bool) -> None:
    """Start again with the hash seed of the recordings, if this process has another one."""
    seeds = set()
    for path in found:
        with contextlib.suppress(OSError, ValueError):  # reported when its turn comes
            head = load_recording(path, trust=trust).head
            seeds.add(head.get("hash_seed"))
    if len(seeds) == 1:
        (seed,) = seeds
        if isinstance(seed, str) and seed.isdecimal() and seed != hash_seed.current():
            hash_seed.restart(seed)


def _again(
    path: str, fn: StreamFn[Any, Any] | None, until: int | None, trust: bool
) -> tuple[Recording, Replay]:
    try:
        recording = load_recording(path, trust=trust)
        return recording, again(recording, fn, until=until)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.UsageError(f"cannot read `{path}`: {reason}") from None
    except LookupError as error:
        raise click.UsageError(f"{error.args[0]}: `--function`, or `--trust`") from None
    except ValueError as error:
        raise Failure(str(error)) from None


def _show(recording: Recording, outcome: Replay, until: int | None) -> None:
    counts = f"{outcome.events:,} events, {outcome.results:,} results"
    what = inline(f"{recording.path}: `{recording.name}`, {counts}: ")
    click.echo(what, nl=False)
    if outcome.difference is not None:
        click.echo(click.style("different", fg="red"))
        echo(f"\n{outcome.difference}")
    else:
        how = "the same, as far as the recording goes" if outcome.end == "open" else "the same"
        click.echo(click.style(how, fg="green"))
    if until is not None:
        _show_state(outcome)


def _show_state(outcome: Replay) -> None:
    from rich.console import Console
    from rich.pretty import pretty_repr
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    for result in outcome.latest:
        console.print("yielded", block(pprint.pformat(result)), markup=False)
    if outcome.line is None:
        click.echo("the function has ended")
        return
    table = Table(title=f"at line {outcome.line}", title_justify="left")
    table.add_column("variable")
    table.add_column("value")
    for name, value in outcome.variables.items():
        with contextlib.suppress(Exception):  # a value that cannot be shown is left out
            shown = pretty_repr(value, max_length=20, max_string=200)
            table.add_row(inline(name), Text(block(shown)))
    console.print(table)
