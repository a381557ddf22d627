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
    from collections.abc import Sequence

    from velo.bench.baseline import Baseline
    from velo.bench.measure import Row
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
    "scenarios",
    type=click.Choice(["all", *NAMES]),
    multiple=True,
    default=["all"],
    show_default=True,
    metavar="all|NAME",
    help=f"A scenario to measure; may be given several times: {', '.join(NAMES)}.",
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
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all figures into this file as JSON, with the machine and the versions.",
)
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare the ratios with those of an earlier `--output`; the exit code is 1 where one "
    "fell by more than its noise, the range of its ratios over the rounds.",
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
@click.option(
    "--long",
    is_flag=True,
    help="Also what takes many minutes a round: 10,000,000 keys on the disk.",
)
def bench(
    scenarios: Sequence[str],
    compare: str,
    style: str,
    output: Path | None,
    baseline: Path | None,
    plot: str | None,
    rounds: int,
    quick: bool,
    long: bool,
) -> None:
    """Measure velo, its floors and its peers, in turn and over several rounds.

    Compare the ratios. In a unit per second more is better, in any other less. Each row is printed
    to stderr as soon as it is measured, and all of them in the end.
    """
    if quick and long:
        raise click.UsageError("`--quick` and `--long` exclude each other")
    for scenario in scenarios:
        if not _core.PROCESS_MODE and scenario not in ("all", *_INLINE):
            raise Failure(f"`{scenario}` measures worker processes, which this build does not have")
    # Imported here, because `velo run` does not need it.
    from velo.bench.alternatives import ALTERNATIVES
    from velo.bench.measure import Plan
    from velo.bench.peers import PEERS, choose
    from velo.bench.peers.connectors import CONNECTORS
    from velo.bench.report import line
    from velo.bench.scenarios import SCENARIOS

    names = list(dict.fromkeys([*PEERS, *CONNECTORS, *ALTERNATIVES]))
    if compare not in ("all", "none", *names):
        raise click.BadParameter(
            f"{compare!r} is none of all, none, {', '.join(names)}", param_hint="--compare"
        )
    earlier = None if baseline is None else _read(baseline)
    if output is not None:
        _try_to_write(output)
    console = Console(stderr=True, emoji=False)

    def warn(text: str) -> None:
        console.print(f"left out: {escape(text)}", highlight=False)

    peers = None if compare == "all" else frozenset({compare})
    for name, command in choose(peers)[1].items():
        warn(f"{name}, which is not installed ({command})")
    with console.status("measuring") as status:
        plan = Plan(
            quick,
            peers,
            lambda name: status.update(f"measuring {escape(name)}"),
            warn,
            rounds,
            long,
        )
        results: dict[str, list[Row]] = {}
        cores: dict[str, Sequence[float]] = {}
        for name, measure in SCENARIOS.items():
            chosen = name in scenarios or "all" in scenarios
            if chosen and (_core.PROCESS_MODE or name in _INLINE):
                before = plan.cores()
                rows = results[name] = []
                for row in measure(plan):
                    rows.append(row)
                    console.print(escape(f"{name}: {line(row)}"), highlight=False, soft_wrap=True)
                cores[name] = (before, plan.cores())
    _show(results, cores, style)
    if output is not None:
        _write(output, results, cores)
    if plot is not None:
        _draw(results, Path(plot))
    if earlier is not None:
        _compare(earlier, results)


def _read(path: Path) -> Baseline:
    from velo.bench.baseline import BadBaseline, read

    try:
        return read(path)
    except (BadBaseline, OSError) as error:
        raise Failure(f"`--baseline {path}`: {error}") from None


def _try_to_write(path: Path) -> None:
    """Fail before the measurement and not after it."""
    try:
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise Failure(f"`--output {path}`: {error.strerror}") from None


def _write(path: Path, results: Results, cores: Cores) -> None:
    from velo.bench import machine, report

    try:
        path.write_text(report.as_json(results, cores, machine.describe()) + "\n")
    except OSError as error:
        raise Failure(f"`--output {path}`: {error.strerror}") from None


def _compare(earlier: Baseline, results: Results) -> None:
    """Print the ratios that fell; they are the failure of the command."""
    from velo.bench.baseline import changes, missing

    for scenario, measurement, other in missing(earlier, results):
        click.echo(f"only in the baseline: {scenario}, {measurement}, {other}", err=True)
    found = list(changes(earlier, results))
    judged = [change for change in found if change.noise is not None]
    if not judged:
        raise Failure(
            "no ratio can be compared with the baseline: it takes the same scenarios and peers, "
            "and two rounds or more"
        )
    fallen = [change for change in judged if change.fell]
    for change in fallen:
        scenario, measurement, other = change.name
        click.echo(
            f"fell: {scenario}, {measurement}, compared with {other}: {change.before:.3g} before, "
            f"{change.now:.3g} now, noise {change.noise:.2g}",
            err=True,
        )
    said = f"{len(fallen)} of {len(judged)} ratios fell by more than their noise"
    if fallen:
        raise Failure(said)
    click.echo(said, err=True)


def _show(results: Results, cores: Cores, style: str) -> None:
    from velo.bench import machine, report

    where = machine.describe()
    if style == "json":
        click.echo(report.as_json(results, cores, where))
        return
    if style == "markdown":
        click.echo(report.as_markdown(results, cores, where))
        return
    console = Console(emoji=False)
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
