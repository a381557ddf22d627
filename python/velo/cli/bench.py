"""`velo bench`: velo compared with its floors and its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from velo import _core
from velo.cli.errors import Failure

if TYPE_CHECKING:
    from velo.bench.report import Cores, Results

__all__ = ["bench"]

NAMES = [
    "throughput",
    "keyed",
    "latency",
    "startup",
    "concurrency",
    "memory",
    "frames",
    "scaling",
    "spinning",
    "codec",
    "watching",
    "connect",
    "checkpoint",
    "alternatives",
]
# What can be measured without process mode.
_INLINE = ("codec",)


@click.command(short_help="Measure velo, its floors and its peers.")
@click.option(
    "--scenario",
    type=click.Choice(["all", *NAMES]),
    default="all",
    show_default=True,
    help="The scenario to measure.",
)
@click.option(
    "--compare",
    metavar="all|none|NAME",
    default="all",
    show_default=True,
    help="The peers; a peer that is not installed is reported and left out.",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "markdown", "json"]),
    default="table",
    show_default=True,
    help="The output format.",
)
@click.option("--plot", metavar="DIR", help="Draw charts into this folder.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 99),
    default=5,
    show_default=True,
    help="How often everything is measured. One round of `keyed` takes a few minutes.",
)
@click.option("--quick", is_flag=True, help="One short round, to test the benchmarks themselves.")
def bench(
    scenario: str, compare: str, style: str, plot: str | None, rounds: int, quick: bool
) -> None:
    """Measure velo, its floors and its peers, in turn and over several rounds.

    Compare the ratios. In a unit per second more is better, in any other less.
    """
    if not _core.PROCESS_MODE and scenario not in ("all", *_INLINE):
        raise Failure(f"`{scenario}` measures worker processes, which this build does not have")
    # Imported here, because `velo run` does not need it.
    from velo.bench.alternatives import ALTERNATIVES
    from velo.bench.measure import Plan
    from velo.bench.peers import PEERS, choose
    from velo.bench.peers.connectors import CONNECTORS
    from velo.bench.scenarios import SCENARIOS

    names = list(dict.fromkeys([*PEERS, *CONNECTORS, *ALTERNATIVES]))
    if compare not in ("all", "none", *names):
        raise click.BadParameter(
            f"{compare!r} is none of all, none, {', '.join(names)}", param_hint="--compare"
        )
    console = Console(stderr=True)

    def warn(text: str) -> None:
        console.print(f"left out: {escape(text)}", highlight=False)

    peers = None if compare == "all" else frozenset({compare})
    for name, command in choose(peers)[1].items():
        warn(f"{name}, which is not installed ({command})")
    with console.status("measuring") as status:
        plan = Plan(
            quick, peers, lambda name: status.update(f"measuring {escape(name)}"), warn, rounds
        )
        results, cores = {}, {}
        for name, measure in SCENARIOS.items():
            if scenario in ("all", name) and (_core.PROCESS_MODE or name in _INLINE):
                before = plan.cores()
                results[name] = list(measure(plan))
                cores[name] = (before, plan.cores())
    _show(results, cores, style)
    if plot is not None:
        _draw(results, Path(plot))


def _show(results: Results, cores: Cores, style: str) -> None:
    from velo.bench import machine, report

    where = machine.describe()
    if style == "json":
        click.echo(report.as_json(results, cores, where))
        return
    if style == "markdown":
        click.echo(report.as_markdown(results, cores, where))
        return
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in where.items()))
    for scenario, rows in results.items():
        table = Table(title=scenario, title_justify="left")
        for number, head in enumerate(report.HEAD):
            table.add_column(head, justify="left" if number in (0, 2, 6) else "right")
        for row in rows:
            table.add_row(*report.cells(row), style="red" if row.met is False else None)
        console.print(table)
        console.print(report.given(cores[scenario]), style="dim", highlight=False)


def _draw(results: Results, folder: Path) -> None:
    from velo.bench.plot import draw

    try:
        for picture in draw(results, folder):
            click.echo(f"drew {picture}", err=True)
    except ImportError as error:
        raise click.ClickException(f"`--plot` needs matplotlib: {error}") from error
