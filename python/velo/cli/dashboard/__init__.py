"""`velo dashboard`: workers, functions, streams and keys, live in a browser."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket as sockets
import webbrowser
from pathlib import Path

import click

from velo.cli.supervisor.overview import which_supervisors
from velo.connect.urls import is_url

__all__ = ["dashboard"]

_NEEDED = ("starlette", "uvicorn", "prometheus_client")


@click.command(short_help="Watch workers, functions, streams and keys in a browser.")
@which_supervisors
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8350,
    show_default=True,
    help="The port; 0 takes any that is free.",
)
@click.option(
    "--metrics",
    multiple=True,
    metavar="URL",
    help="Show sources and inline functions of a program, from its metrics for Prometheus.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="FOLDER",
    help="Show the checkpoint in this folder.",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the default browser.")
def dashboard(
    socket: str | None,
    pid: int | None,
    host: str,
    port: int,
    metrics: tuple[str, ...],
    checkpoints: tuple[str, ...],
    opens: bool,
) -> None:
    """Serve a live page about all programs of this user that run streams in process mode.

    The same figures as in `velo top`, and their charts over the last minutes; the local variables
    of a stream or key; a button that ends a stream. The printed address has a token in it: whoever
    has it may do all that. Workers are asked once a second while a page is open, and not otherwise.

    `--metrics` and `--checkpoint` may be given several times. Ctrl-C ends it.
    """
    if remote := next((path for path in checkpoints if is_url(path)), None):
        raise click.UsageError(
            f"`{remote}` is in an object store, which is not asked each second: "
            "`velo checkpoint inspect` shows it"
        )
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise click.UsageError(
            f"`velo dashboard` needs {', '.join(missing)}: pip install 'velo-stream[dashboard]'"
        )
    from velo.cli.dashboard.serving import serve
    from velo.cli.dashboard.watch import Watch

    watch = Watch(socket, pid, metrics, [Path(path) for path in checkpoints])
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    try:
        listener = sockets.create_server((host, port), family=family)
    except OSError as error:
        why = (os.strerror(error.errno) if error.errno else str(error)).lower()
        raise click.UsageError(
            f"cannot listen at {host}:{port}: {why}; `--port 0` takes a free port"
        ) from None
    token = secrets.token_urlsafe(18)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/?token={token}"
    click.echo(f"velo: the dashboard is at {address}", err=True)
    if opens:
        webbrowser.open(address)
    serve(listener, watch, token, host)
