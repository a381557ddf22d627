"""`velo supervisor start`: in the foreground, or detached."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from velo import _core
from velo._process import supervisors
from velo.cli.errors import Failure
from velo.cli.metrics import serving
from velo.cli.supervisor import log_file as log_files
from velo.cli.supervisor.admin_connection import socket_of
from velo.cli.supervisor.exporting import SupervisorFigures
from velo.cli.text import echo
from velo.errors import CheckpointError, PoolError

__all__ = ["start"]

_SECONDS = click.FloatRange(min=0)
_POSITIVE = click.IntRange(min=1)
# The lines of the log that are shown when a detached supervisor does not start.
_SHOWN = 20


class _Workers(click.ParamType[tuple[int, int | None]]):
    """`N`: at most `N` workers; `MIN:MAX`: at least `MIN` of them stay when they are idle."""

    name = "N|MIN:MAX"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int | None]:
        """Return the least and the greatest number."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(?:(\d+):)?(\d+)", value)
        if found is None:
            self.fail(f"{value!r} is neither a number nor MIN:MAX", param, context)
        least, most = int(found[1] or 0), int(found[2])
        if not (most >= 1 and least <= most <= 1024):
            self.fail(f"{value!r}: 0 <= MIN <= MAX, and MAX from 1 to 1024", param, context)
        return least, most


@click.command(short_help="Run a supervisor, here or detached.")
@click.option(
    "--workers",
    type=_Workers(),
    help="Worker processes at most; with MIN, so many stay when nothing is to do. "
    "[default: as many as each program asks for, none when idle]",
)
@click.option("--preload", multiple=True, metavar="MODULE", help="Have workers import it first.")
@click.option(
    "--socket",
    metavar="PATH",
    help="Where to listen. [default: what VELO_SUPERVISOR says, or velo/supervisor.sock in the "
    "runtime directory]",
)
@click.option("--detach", is_flag=True, help="Run in the background; return when it is ready.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How each line of its log is written.",
)
@click.option(
    "--idle-timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="End a worker that has had no stream for this time.",
)
@click.option(
    "--stop-timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="How long open streams may go on after SIGTERM or Ctrl-C.",
)
@click.option(
    "--max-clients",
    type=_POSITIVE,
    default=1000,
    show_default=True,
    metavar="N",
    help="Event loops of programs that may be connected at a time.",
)
@click.option(
    "--client-workers", type=_POSITIVE, metavar="N", help="Workers that one program may use."
)
@click.option(
    "--client-streams",
    type=_POSITIVE,
    metavar="N",
    help="Streams that one program may have open at a time.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve figures for Prometheus there; without a password, so 127.0.0.1 is a good host.",
)
@click.option(
    "--checkpoint",
    metavar="FOLDER",
    help="Store the states of sessions (`open(key=...)`) there, so that they outlive it.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Between two ticks of the checkpoint. [default: 1]",
)
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Forget a key of the checkpoint whose state has not changed for this time.",
)
@click.option(
    "--trust", is_flag=True, help="The checkpoint is yours alone: its states may hold pickles."
)
@click.option("--hello-timeout", type=_SECONDS, default=5.0, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--log-file", hidden=True)
def start(
    workers: tuple[int, int | None] | None,
    socket: str | None,
    detach: bool,
    log_format: str,
    ready_fd: int | None,
    log_file: str | None,
    preload: tuple[str, ...],
    metrics: str | None,
    checkpoint: str | None,
    checkpoint_every: float | None,
    ttl: float | None,
    trust: bool,
    **settings: Any,
) -> None:
    """Run a supervisor until SIGTERM, Ctrl-C or `velo supervisor stop`.

    Its log goes to standard error, and what functions print to standard output and error; detached,
    all of that goes to a file beside the socket, with .log for its ending (and a number before, if
    something else has that name), which is removed when the supervisor has ended as it was told to.
    """
    if checkpoint is None and (checkpoint_every is not None or ttl is not None or trust):
        raise click.UsageError("`--checkpoint-every`, `--ttl` and `--trust` need `--checkpoint`")
    socket = socket_of(socket)
    if detach:
        return _detach(socket, log_format)
    for pattern in (signal.SIGINT, signal.SIGTERM):
        signal.signal(pattern, signal.SIG_DFL)  # they are the supervisor's
    figures, tell = SupervisorFigures(), _ready(ready_fd)
    notes = _core.DaemonNotes()

    def ready(path: Path) -> None:
        figures.watch(str(path))
        tell(path)

    # Other threads leave signals to the supervisor, which handles them itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        with (
            _keeping(checkpoint, checkpoint_every or 1.0, ttl, trust, notes) as keeper,
            serving(metrics, lambda registry: registry.register(figures)),
        ):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _core.serve_daemon(
                supervisors.zygote_command(),
                [*supervisors.environment(), *keeper],
                ready,
                runtime=supervisors.runtime(),
                socket=socket,
                workers=workers or (0, None),
                preload=preload,
                json=log_format == "json",
                notes=notes,
                **settings,
            )
    except (CheckpointError, PoolError) as error:
        raise Failure(str(error)) from None
    if log_file is not None:
        log_files.remove(Path(log_file), 2)


@contextlib.contextmanager
def _keeping(
    folder: str | None, every: float, ttl: float | None, trusted: bool, notes: _core.DaemonNotes
) -> Iterator[list[tuple[str, str]]]:
    """Keep states of sessions, if there is a folder; yield what the zygote's environment needs."""
    if folder is None:
        yield []
        return
    from velo._checkpoint.keeper import keeping

    path = Path(folder).absolute()
    with keeping(path, every=every, ttl=ttl, trusted=trusted, notes=notes) as variable:
        yield [variable]


def _ready(ready_fd: int | None) -> Callable[[Path], object]:
    """Return the function that tells the parent that this detached process is ready."""
    if ready_fd is None:
        return lambda path: None
    os.set_inheritable(ready_fd, False)

    def ready(path: Path) -> None:
        with contextlib.suppress(OSError):  # it has stopped waiting
            os.write(ready_fd, os.fsencode(path))
        os.close(ready_fd)

    return ready


def _detach(socket: str | None, log_format: str) -> None:
    """Start this command again in a session of its own, and wait until it is ready."""
    arguments = [word for word in sys.argv[1:] if word != "--detach"]
    here, there = os.pipe()
    usual = log_files.beside(Path(socket or _core.default_socket()).absolute())
    try:
        if socket is None:
            _make_private(usual.parent)
        log, kept = log_files.open_log(usual, log_format)
    except OSError as error:
        raise Failure(f"cannot write the log `{usual}`: {error.strerror}") from None
    before = os.fstat(kept).st_size
    with os.fdopen(here, "rb") as news:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "velo", *arguments),
                *("--ready-fd", str(there), "--log-file", str(log)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=kept,
            stderr=kept,
            pass_fds=[there],
            start_new_session=True,
        )
        os.close(there)
        path = news.read()  # ends when it has said so, and when it has ended
    if not path:
        process.wait()
        said = _read_from(kept, before).decode(errors="replace").splitlines()
        if before <= log_files.LONGEST_FIRST:
            log_files.remove(log, kept)  # it holds only the reason why the supervisor did not start
        reason = next((line for line in reversed(said) if line.startswith("velo: ")), None)
        text = reason.removeprefix("velo: ") if reason else "\n".join(said[-_SHOWN:])
        raise Failure(text or f"it did not start (exit code {process.returncode})")
    os.close(kept)
    echo(f"supervisor (pid {process.pid}) ready at {os.fsdecode(path)}, log in {log}")


def _read_from(fd: int, start: int) -> bytes:
    return os.pread(fd, max(0, os.fstat(fd).st_size - start), start)


def _make_private(folder: Path) -> None:
    """Make the runtime directory, or check that no other user can use the existing one."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    why = None
    if not stat.S_ISDIR(found.st_mode):
        why = "is no folder"
    elif found.st_uid != os.geteuid():
        why = "belongs to another user"
    elif found.st_mode & 0o077:
        why = "can be used by others (`chmod 700` it)"
    if why is not None:
        raise Failure(f"`{folder}` {why}; or choose another `--socket`")
