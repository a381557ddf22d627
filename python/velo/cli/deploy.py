"""`velo deploy`: the same command on the nodes of a cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click

from velo.cli.errors import Failure
from velo.cli.text import echo

__all__ = ["deploy"]


@click.group()
def deploy() -> None:
    """Run a stream function as a service on several machines."""


@deploy.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run `velo run` on the nodes of a Ray cluster.",
)
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", help="How many. [default: all that live]"
)
@click.option("--address", metavar="HOST:PORT", help="Of the cluster. [default: RAY_ADDRESS]")
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    metavar="N",
    help="Give up a member that fails, or cannot start, more often in a row. [default: never]",
)
@click.option(
    "--working-dir", metavar="FOLDER", help="Send this folder to the nodes, with the program."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def ray(
    nodes: int | None,
    address: str | None,
    restarts: int | None,
    working_dir: str | None,
    command: tuple[str, ...],
) -> None:
    r"""Run `velo run COMMAND` as one member on each of N nodes of a Ray cluster.

    \b
      velo deploy ray --nodes 3 app.py:fn --input 'kafka://broker/orders?group=g' \
          --key user --output kafka://broker/alerts --mode process

    The members share the partitions of the source by its group. A member that fails starts again;
    when its node goes, it starts on another one. Ctrl-C or SIGTERM has all of them drain. The exit
    code is 0 when all have ended with 0, else that of the first that failed.
    """
    _check_shared(nodes, command)
    try:
        from velo._ray.deployment import Deployment
        from velo._ray.library import load

        load()
    except ImportError as error:
        raise Failure(str(error)) from None
    deployment = Deployment(
        command=["run", "--no-progress", *command],
        folder=os.getcwd(),
        count=nodes,
        restarts=restarts,
        say=lambda number, place, line: echo(f"[{number}, {place}] {line}", err=True),
        runtime_env={"working_dir": working_dir} if working_dir else None,
    )

    async def main() -> int:
        loop = asyncio.get_running_loop()
        running = loop.create_task(deployment.run(address))
        stopped: list[int] = []

        def stop(number: int) -> None:
            if stopped:
                running.cancel()  # the actors end with this process, and the members with them
            stopped.append(number)
            loop.create_task(deployment.stop())

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            code = await running
        except asyncio.CancelledError:
            code = 1
        return 128 + stopped[0] if stopped else code

    sys.exit(asyncio.run(main()))


def _check_shared(nodes: int | None, command: tuple[str, ...]) -> None:
    """Refuse several members that would each read everything."""
    text = " ".join(command)
    if nodes != 1 and "group=" not in text and "--group" not in command:
        raise click.UsageError(
            "several members share a source by its group, and this one has none: add "
            "`?group=NAME` to the URL of `--input`, or `--nodes 1`"
        )
