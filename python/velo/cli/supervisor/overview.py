"""The supervisors that `velo top`, `velo status` and `velo inspect` look at.

An option names one of them. Without it, they are the standalone supervisor that programs of this
environment would use, and the embedded supervisors of all programs of this user.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from velo import _core
from velo.cli.errors import Failure
from velo.cli.supervisor.admin_connection import AdminConnection, NoAnswer, NotThere, socket_of
from velo.cli.supervisor.figures import Watcher
from velo.errors import PoolError

__all__ = ["Overview", "address_of", "command_of", "which_supervisors"]

# The longest part of a program's command line that is shown, in characters.
_LONGEST = 100

# The seconds until the next attempt to connect to a supervisor that accepts no connection.
_LEFT_ALONE = 30.0


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
    """The running supervisors, found anew with each look.

    Args:
        socket: The socket of the one standalone supervisor to look at; None: all.
        pid: The process id of the one program to look at; None: all.
        bound: The seconds that each supervisor may take to answer, where no option names one. One
            that takes longer is left out until it has answered.

    Attributes:
        refused: The reasons why running programs cannot be looked at, by process id.

    Raises:
        Failure: When an option names a supervisor that does not run.

    """

    def __init__(
        self, socket: str | None, pid: int | None, bound: float = AdminConnection.bound
    ) -> None:
        if socket is not None and pid is not None:
            raise click.UsageError("`--socket` and `--pid` name two supervisors: give one of them")
        self.refused: dict[int, str] = {}
        self._pid = pid
        self._bound = bound
        self._watchers: dict[str, tuple[AdminConnection, Watcher]] = {}
        # When to connect again to those that accept no connection.
        self._again: dict[str, float] = {}
        # The supervisor that an option names by its socket; the command ends with it.
        self._only: AdminConnection | None = None
        if socket is not None:
            self._only = AdminConnection(socket)
            self._add(self._only)
        self._find()
        if pid is not None and not self._watchers:
            why = self.refused.get(pid) or (
                "it runs no stream in process mode, has another runtime directory, or has ended"
            )
            raise Failure(f"process {pid} has no supervisor that can be looked at: {why}")

    @property
    def single(self) -> bool:
        """Whether an option names the supervisor."""
        return self._only is not None or self._pid is not None

    def _add(self, connection: AdminConnection) -> None:
        if not self.single:
            connection.bound = self._bound
        self._watchers[connection.path] = (connection, Watcher(connection))

    def _find(self) -> None:
        """Connect to new supervisors."""
        if self._only is not None:
            return
        now = time.monotonic()
        self._again = {path: at for path, at in self._again.items() if at > now}
        known = {*self._watchers, *self._again}
        default = socket_of(None) or str(_core.default_socket())
        if self._pid is None and default not in known:
            self._try(lambda: AdminConnection(default), default, None)
        programs = _core.programs()
        running = {pid for pid, _ in programs}
        self.refused = {pid: why for pid, why in self.refused.items() if pid in running}
        for pid, path in programs:
            if pid != os.getpid() and str(path) not in known and self._pid in (None, pid):
                self._try(partial(AdminConnection.to_program, pid, str(path)), str(path), pid)

    def _try(self, connect: Callable[[], AdminConnection], path: str, pid: int | None) -> None:
        try:
            connection = connect()
        except NotThere:
            return
        except Failure as error:
            if isinstance(error, NoAnswer):
                self._again[path] = time.monotonic() + _LEFT_ALONE
            elif pid is None:
                raise
            if pid is not None:
                self.refused[pid] = str(error)
            return
        if pid is not None:
            self.refused.pop(pid, None)
        if connection.path not in self._watchers:
            self._add(connection)

    def ask(
        self, *steps: Callable[[AdminConnection, Watcher], Any]
    ) -> list[tuple[AdminConnection, Any]]:
        """Take each step with all supervisors before the next step.

        With a first step that asks and a second one that waits, the whole takes no longer than the
        slowest supervisor.

        Returns:
            The results of the last step. Supervisors that have ended meanwhile are left out, and
            those that do not answer: they are asked nothing more until they have.

        Raises:
            Failure: When the supervisor that an option names has ended, or does not answer.

        """
        self._find()
        asked: dict[str, tuple[AdminConnection, Any]] = {}
        for number, step in enumerate(steps):
            for path, (connection, watcher) in list(self._watchers.items()):
                if number and path not in asked:
                    continue
                try:
                    if number or self._has_answered(connection):
                        asked[path] = (connection, step(connection, watcher))
                except (Failure, PoolError) as error:
                    asked.pop(path, None)
                    self._leave_out(connection, error)
        return list(asked.values())

    def _has_answered(self, connection: AdminConnection) -> bool:
        """Tell whether a supervisor has answered what it was asked before."""
        if not connection.late:
            return True
        if not connection.catch_up():
            if self.single:
                raise connection.no_answer()
            return False
        if (pid := _pid_of(connection)) is not None:
            self.refused.pop(pid, None)
        return True

    def _leave_out(self, connection: AdminConnection, error: Exception) -> None:
        if self.single:
            why = str(error)
            raise Failure(
                why if connection.label in why else f"{connection.label}: {why}"
            ) from None
        # One that is stopped accepts no connection: another attempt would only fill its queue.
        if not isinstance(error, NoAnswer):
            del self._watchers[connection.path]
        if (pid := _pid_of(connection)) is not None and Path(f"/proc/{pid}").exists():
            self.refused[pid] = str(error)

    def look(self) -> list[dict[str, Any]]:
        """Return the state of each supervisor, with its socket and its program."""
        looked = self.ask(
            lambda connection, _: connection.supervisor.status(),
            lambda connection, watcher: watcher.begin(connection.said()),
            lambda _, watcher: watcher.finish(),
        )
        return [
            {
                "socket": connection.path,
                "program": command_of(state["pid"]) if state["embedded"] else None,
                **state,
            }
            for connection, state in looked
        ]

    @property
    def complete(self) -> bool:
        """Whether every worker that answers has named all of its streams."""
        return all(
            watcher.complete
            for connection, watcher in self._watchers.values()
            if not connection.late
        )

    def end(self, socket: str, stream: str, why: str) -> bool:
        """End a stream of one of the supervisors; return whether it was still open."""
        if socket not in self._watchers:
            return False
        connection, _ = self._watchers[socket]
        try:
            if not self._has_answered(connection):
                return False
            connection.supervisor.end(stream, why)
            looks = connection.look()
        except NoAnswer:
            return False
        return any('"slot"' in (look["answer"] or "") for look in looks)

    def nothing(self) -> str:
        """Return why there is no supervisor to look at, and what to do."""
        if self.refused:
            return "; ".join(f"process {pid}: {why}" for pid, why in self.refused.items())
        return (
            "no program of this user runs streams in worker processes, and no standalone "
            "supervisor runs. Streams are seen in process mode alone: `@stream_fn(mode="
            '"process")`, or `velo run --mode process`'
        )


def address_of(stream: dict[str, Any]) -> str:
    """Return the address of a stream at its supervisor, for `end` and for `velo inspect`."""
    if stream["state"] == "detached":
        place: str = stream["place"]  # a new attachment changes it
        return place
    # A stream's name is not unique, and its slot may belong to another stream by now.
    name = "" if stream["name"] is None else f":{stream['name']}"
    return f"{stream['link']}:{stream['slot']}{name}"


def _pid_of(connection: AdminConnection) -> int | None:
    paths = {str(path): pid for pid, path in _core.programs()}
    return paths.get(connection.path)


def command_of(pid: int) -> str:
    """Return the name of a program: its command line without the interpreter."""
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
    """Drop the interpreter's options, up to the script or module that it runs."""
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "-m":
            break
        if option == "-c":
            return ["-c"]
        if option in ("-X", "-W") and words:
            words.pop(0)
    return words
