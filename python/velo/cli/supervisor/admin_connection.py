"""A connection to a running supervisor, for the commands that ask or control it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket as sockets
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import click

from velo import _core
from velo._process import supervisors
from velo.cli.errors import Failure
from velo.errors import PoolError

__all__ = ["AdminConnection", "NoAnswer", "NotThere", "socket_of", "socket_option"]

# The reports with which an answer ends.
_LAST = (_core.Report.Status, _core.Report.Done, _core.Report.Unable)

socket_option = click.option(
    "--socket", metavar="PATH", help="Where it listens. [default: as for `start`]"
)


class NotThere(Failure):
    """No supervisor listens at the socket."""


class NoAnswer(Failure):
    """A supervisor takes too long: its process is stopped, or too busy."""


def socket_of(option: str | None) -> str | None:
    """Return the path of the socket that an option or the environment names; None: the default."""
    if option is not None:
        return option
    try:
        path = supervisors.address_of("auto")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return None if path == str(_core.default_socket()) else path


class AdminConnection:
    """A connection to a supervisor, one order at a time.

    Args:
        socket: Where a standalone supervisor listens; None for the default.

    Attributes:
        supervisor: The connection itself.
        path: Where the supervisor listens.
        label: The name of the supervisor in messages.
        bound: The seconds that the supervisor may take to answer.
        late: Whether an answer was not waited for to its end. It comes before the next one.

    Raises:
        Failure: When no supervisor listens there, or this user may not connect.
        NoAnswer: When the supervisor accepts no connection.

    """

    bound = 10.0
    late = False

    # Whether the supervisor has hung up.
    _lost = False

    def __init__(self, socket: str | None) -> None:
        path = socket_of(socket) or str(_core.default_socket())
        try:
            self.supervisor = _core.SupervisorClient.connect(path)
        except ConnectionError as error:
            raise NotThere(
                f"{error}; start one with `velo supervisor start --detach`, and run programs with "
                "`VELO_SUPERVISOR=daemon`. `velo status` shows programs without one"
            ) from None
        except TimeoutError as error:
            raise NoAnswer(str(error)) from None
        except PoolError as error:
            raise Failure(str(error)) from None
        self.path = path
        self.label = f"the supervisor at `{path}`"

    @classmethod
    def to_program(cls, pid: int, path: str) -> Self:
        """Connect to the supervisor that is embedded in a program.

        Raises:
            NotThere: When the program has ended.
            NoAnswer: When its supervisor accepts no connection.
            Failure: When this user may not connect, or cannot.

        """
        connection = cls.__new__(cls)
        try:
            connection.supervisor = _core.SupervisorClient.connect(path)
        except ConnectionError as error:
            # Any other error, such as a want of descriptors here, says nothing of the program.
            if isinstance(error, ConnectionRefusedError):
                _core.forget_program(path)
            if Path(path).exists():
                raise Failure(str(error)) from None
            raise NotThere(f"process {pid} has no supervisor of its own any more") from None
        except TimeoutError as error:
            raise NoAnswer(str(error)) from None
        except PoolError as error:
            raise Failure(str(error)) from None
        connection.path = path
        connection.label = f"the supervisor of process {pid}"
        return connection

    def hear(self, bound: float | None) -> list[_core.Report]:
        """Wait for the supervisor's next messages; none if the bound, in seconds, runs out."""
        if not select.select([self.supervisor.fileno()], [], [], bound)[0]:
            return []
        try:
            reports = self.supervisor.poll()
        except PoolError as error:
            raise Failure(str(error)) from None
        # The supervisor's end comes once: with the answer to an order, or instead of it.
        self._lost |= any(isinstance(report, _core.Report.Lost) for report in reports)
        return reports

    def answer(self) -> Any:
        """Wait for the answer to an order."""
        for report in self._answers():
            match report:
                case _core.Report.Status(text=text):
                    return text
                case _core.Report.Log(lines=lines):
                    return lines
                case _core.Report.Done():
                    return None
                case _core.Report.Unable(why=why):
                    raise Failure(f"{self.label} cannot do that: {why}")
        raise self.no_answer()

    def look(self) -> list[dict[str, Any]]:
        """Return the workers' answers, after an order to look at them."""
        looks = []
        for report in self._answers():
            match report:
                case _core.Report.Looked(text=text):
                    looks.append(json.loads(text))
                case _core.Report.Done():
                    return looks
                case _core.Report.Unable(why=why):
                    raise Failure(f"{self.label} cannot show that: {why}")
        raise self.no_answer()

    def _answers(self) -> Iterator[_core.Report]:
        """Yield the supervisor's messages until it has taken too long."""
        deadline = time.monotonic() + self.bound
        while (left := deadline - time.monotonic()) > 0:
            yield from self._living(self.hear(left))

    def _living(self, reports: list[_core.Report]) -> Iterator[_core.Report]:
        for report in reports:
            if isinstance(report, _core.Report.Lost):
                raise Failure(f"{self.label} has hung up")
            yield report

    def no_answer(self) -> NoAnswer:
        """Note that an answer is late, and return the error that says so."""
        self.late = True
        return NoAnswer(f"{self.label} did not answer within {self.bound:g} s")

    def catch_up(self) -> bool:
        """Take a late answer, if it is there by now; return whether none is late any more.

        Raises:
            Failure: When the supervisor has hung up.

        """
        while self.late and (reports := self.hear(0.0)):
            for report in self._living(reports):
                self.late &= not isinstance(report, _LAST)
        return not self.late

    def state(self) -> dict[str, Any]:
        """Return the state of the supervisor."""
        self.supervisor.status()
        return self.said()

    def said(self) -> dict[str, Any]:
        """Return the supervisor's answer, after it was asked for its status."""
        state: dict[str, Any] = json.loads(self.answer())
        state["checkpoint"] = json.loads(state["checkpoint"] or "null")
        return state

    def end(self, bound: float | None) -> bool:
        """Wait until the process of the supervisor has ended; return whether it has."""
        deadline = None if bound is None else time.monotonic() + bound

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        with contextlib.ExitStack() as closing:
            process = self._process()
            if process is not None:
                closing.callback(os.close, process)
            while not self._lost and left() != 0.0:
                self.hear(left())
            # It hangs up before it removes its log.
            ended = process is None or bool(select.select([process], [], [], left())[0])
        return self._lost and ended

    def _process(self) -> int | None:
        """Open the process that listens at the other end; None where it has ended or is hidden."""
        fd = self.supervisor.fileno()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        with sockets.socket(fileno=os.dup(fd)) as connection:
            size = struct.calcsize("3i")
            credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, size)
        pid, _, _ = struct.unpack("3i", credentials)
        with contextlib.suppress(OSError):
            if pid > 0:  # 0: it runs in another namespace
                return os.pidfd_open(pid)
        return None
