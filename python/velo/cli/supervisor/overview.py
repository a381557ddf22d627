"""The supervisors that `velo top`, `velo status` and `velo inspect` look at.

That is one, if an option names it. Otherwise it is the standalone one that programs of this
environment would use, and those of all programs of this user that have one of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from velo import _core
from velo.cli.errors import Failure
from velo.cli.supervisor.figures import Watcher
from velo.cli.supervisor.line import Line, NotThere, socket_of
from velo.errors import PoolError

__all__ = ["Overview", "command_of", "which_supervisors"]

# So much of a program's command line is shown.
_LONGEST = 100


def which_supervisors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the supervisors."""
    socket = click.option(
        "--socket",
        metavar="PATH",
        help="Show only the standalone supervisor at this socket. [default: show all that runs]",
    )
    pid = click.option(
        "--pid", type=int, metavar="PID", help="Show only the program with this process id."
    )
    return socket(pid(command))


class Overview:
    """The supervisors that are there, found anew with each look.

    Args:
        socket: Of the one standalone supervisor to look at; None: all.
        pid: Of the one program to look at; None: all.

    Attributes:
        refused: Why a program that is there cannot be looked at, by its process id.

    Raises:
        Failure: When an option names one that is not there.

    """

    def __init__(self, socket: str | None, pid: int | None) -> None:
        if socket is not None and pid is not None:
            raise click.UsageError("`--socket` and `--pid` name two supervisors: give one of them")
        self.refused: dict[int, str] = {}
        self._pid = pid
        self._watchers: dict[str, tuple[Line, Watcher]] = {}
        # The one that is named by its socket, whose end is the end of the command.
        self._only: Line | None = None
        if socket is not None:
            self._only = Line(socket)
            self._add(self._only)
        self._find()
        if pid is not None and not self._watchers:
            why = self.refused.get(pid) or (
                "it runs no stream in process mode, has another runtime directory, or has ended"
            )
            raise Failure(f"process {pid} has no supervisor that can be looked at: {why}")

    @property
    def single(self) -> bool:
        """Whether an option names the one supervisor that is looked at."""
        return self._only is not None or self._pid is not None

    def _add(self, line: Line) -> None:
        self._watchers[line.path] = (line, Watcher(line))

    def _find(self) -> None:
        """Connect to those that are new."""
        if self._only is not None:
            return
        known = set(self._watchers)
        default = socket_of(None) or str(_core.default_socket())
        if self._pid is None and default not in known:
            self._try(lambda: Line(default), None)
        for pid, path in _core.programs():
            if pid != os.getpid() and str(path) not in known and self._pid in (None, pid):
                self._try(lambda pid=pid, path=str(path): Line.to_program(pid, path), pid)  # type: ignore[misc]

    def _try(self, connect: Callable[[], Line], pid: int | None) -> None:
        try:
            line = connect()
        except NotThere:
            return
        except Failure as error:
            if pid is None:
                raise
            self.refused[pid] = str(error)
            return
        if line.path not in self._watchers:
            self._add(line)

    def ask(self, *steps: Callable[[Line, Watcher], Any]) -> list[tuple[Line, Any]]:
        """Take steps with each of them, the next one when all have taken the one before.

        So a first step that asks, and a second one that waits, takes no longer than the slowest.

        Returns:
            What the last step has returned for each. Those that have ended meanwhile are left out.

        Raises:
            Failure: When the one that an option names has ended.

        """
        self._find()
        asked: dict[str, tuple[Line, Any]] = {}
        for number, step in enumerate(steps):
            for path, (line, watcher) in list(self._watchers.items()):
                if number and path not in asked:
                    continue
                try:
                    asked[path] = (line, step(line, watcher))
                except (Failure, PoolError) as error:
                    asked.pop(path, None)
                    self._drop(line, error)
        return list(asked.values())

    def _drop(self, line: Line, error: Exception) -> None:
        if self.single:
            why = str(error)
            raise Failure(why if line.label in why else f"{line.label}: {why}") from None
        del self._watchers[line.path]
        if (pid := _pid_of(line)) is not None and Path(f"/proc/{pid}").exists():
            self.refused[pid] = str(error)

    def look(self) -> list[dict[str, Any]]:
        """Return the state of each, with its socket and the program that it is a part of."""
        looked = self.ask(
            lambda line, _: line.supervisor.status(),
            lambda line, watcher: watcher.begin(line.said()),
            lambda _, watcher: watcher.finish(),
        )
        return [
            {
                "socket": line.path,
                "program": command_of(state["pid"]) if state["embedded"] else None,
                **state,
            }
            for line, state in looked
        ]

    @property
    def complete(self) -> bool:
        """Whether every worker that answers has named all of its streams."""
        return all(watcher.complete for _, watcher in self._watchers.values())

    def end(self, socket: str, stream: str, why: str) -> bool:
        """End a stream of one of the supervisors; whether it was there to be ended."""
        if socket not in self._watchers:
            return False
        line, _ = self._watchers[socket]
        line.supervisor.end(stream, why)
        return any('"slot"' in (look["answer"] or "") for look in line.look())

    def nothing(self) -> str:
        """Say why there is nothing to look at, and what to do."""
        if self.refused:
            return "; ".join(f"process {pid}: {why}" for pid, why in self.refused.items())
        return (
            "no program of this user runs streams in worker processes, and no standalone "
            "supervisor runs. Streams are seen in process mode alone: `@stream_fn(mode="
            '"process")`, or `velo run --mode process`'
        )


def _pid_of(line: Line) -> int | None:
    paths = {str(path): pid for pid, path in _core.programs()}
    return paths.get(line.path)


def command_of(pid: int) -> str:
    """Return what a program is called: its command line without the interpreter."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "?"
    shown = [word.decode(errors="replace") for word in words]
    if os.path.basename(shown[0]).startswith("python"):
        shown = _without_options(shown[1:]) or shown
    shown[0] = os.path.basename(shown[0])
    return " ".join(shown)[:_LONGEST]


def _without_options(words: list[str]) -> list[str]:
    """Drop what the interpreter is told, up to what it runs."""
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "-m":
            break
        if option == "-c":
            return ["-c"]
        if option in ("-X", "-W") and words:
            words.pop(0)
    return words
