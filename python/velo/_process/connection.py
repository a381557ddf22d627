"""One event loop's connection to a supervisor: made, greeted, lost and made again."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from typing import Protocol

from velo import _core
from velo._function.import_paths import import_paths
from velo._process import supervisors
from velo._time_limit import time_limit
from velo.errors import PoolError

__all__ = ["Connection", "Listener"]

# How many seconds a supervisor may take to greet.
_HELLO_BOUND = 10.0


class Listener(Protocol):
    """Hears what a connection brings."""

    def on_connected(self) -> None:
        """Note that a standalone supervisor was connected to, maybe after another one."""

    def on_report(self, report: _core.Report) -> None:
        """Act on a report of the supervisor."""

    def on_lost(self, why: str) -> None:
        """Go on without the supervisor."""

    def on_heard(self) -> None:
        """Note that all reports so far were acted on."""


class Connection:
    """The connection, and the terms that the supervisor has set.

    Args:
        loop: The event loop, which this does not keep alive.
        address: Of a standalone supervisor. None: the supervisor of this process.
        listener: Hears the supervisor.

    Attributes:
        supervisor: The connection itself, while there is one.
        most_workers: How many workers this process may use at most. 0: any number.
        most_streams: How many streams this process may have open at most. 0: any number.

    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, address: str | None, listener: Listener
    ) -> None:
        self.address = address
        self.supervisor: _core.SupervisorClient | None = None
        self.most_workers = 0
        self.most_streams = 0
        self._loop_of = weakref.ref(loop)
        self._listener_of = weakref.ref(listener)
        # While a standalone supervisor has yet to greet.
        self._greeting: asyncio.Future[None] | None = None
        self._preloaded: set[str] = set()

    def connect(self) -> _core.SupervisorClient:
        """Return the connection to the supervisor, made anew if need be.

        Raises:
            PoolError: When there is no supervisor.

        """
        if self.supervisor is not None:
            return self.supervisor
        if self.address is None:
            supervisor = supervisors.embedded()
        else:
            supervisor = supervisors.connect(self.address)
        loop, listener = asyncio.get_running_loop(), self._listener_of()
        assert listener is not None  # it has called this
        self.supervisor = supervisor
        if self.address is not None:
            self._greeting = loop.create_future()
            listener.on_connected()
        # While it is connected, the event loop keeps both alive.
        loop.add_reader(supervisor.fileno(), self._poll, listener)
        if self._preloaded:
            supervisor.preload(list(self._preloaded), import_paths())
        return supervisor

    async def greet(self) -> None:
        """Wait until a standalone supervisor has greeted, with its version and its terms.

        Raises:
            PoolError: When it does not, or when this program cannot use it.

        """
        if self._greeting is None:
            return
        try:
            async with time_limit(_HELLO_BOUND):
                await asyncio.shield(self._greeting)
        except TimeoutError:
            self.disconnect()
            raise PoolError(
                f"the supervisor at `{self.address}` did not answer within {_HELLO_BOUND} s"
            ) from None

    def disconnect(self) -> None:
        """Let go of the supervisor."""
        supervisor, self.supervisor = self.supervisor, None
        loop = self._loop_of()
        if supervisor is not None and loop is not None and not loop.is_closed():
            loop.remove_reader(supervisor.fileno())

    def preload(self, modules: tuple[str, ...]) -> None:
        """Have workers import modules before they run streams."""
        new = [module for module in modules if module not in self._preloaded]
        if new:
            self._preloaded.update(new)
            if self.supervisor is not None:
                # One that has ended, which was not noticed yet, has a successor: that is told.
                with contextlib.suppress(PoolError):
                    self.supervisor.preload(new, import_paths())

    def poll(self) -> None:
        """Act on all that the supervisor has reported."""
        if (listener := self._listener_of()) is not None:
            self._poll(listener)

    def _poll(self, listener: Listener) -> None:
        if self.supervisor is None:
            return
        try:
            for report in self.supervisor.poll():
                try:
                    self._on_report(listener, report)
                except PoolError:
                    raise
                except Exception as error:
                    # With `-W error` a warning raises, too. Other tasks wait for the other reports.
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": "a report of the supervisor failed", "exception": error}
                    )
        except PoolError as error:  # this program cannot use the supervisor
            self._answer_greeting(error)
            self._on_lost(listener, str(error))
        listener.on_heard()

    def _on_report(self, listener: Listener, report: _core.Report) -> None:
        match report:
            case _core.Report.Hello():
                self._on_hello(report)
            case _core.Report.NotPreloaded():
                self._on_not_preloaded(report)
            case _core.Report.Lost():
                self._on_lost(listener, "the supervisor of this process has ended")
            case _:
                listener.on_report(report)

    def _on_hello(self, hello: _core.Report.Hello) -> None:
        if self.address is not None:
            supervisors.check(self.address, hello.velo, hello.runtime)
            self.most_workers, self.most_streams = hello.max_workers, hello.max_streams
        self._answer_greeting(None)

    def _on_not_preloaded(self, report: _core.Report.NotPreloaded) -> None:
        if report.module in self._preloaded:
            warnings.warn(
                f"workers go on without module `{report.module}` preloaded: {report.why}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _on_lost(self, listener: Listener, why: str) -> None:
        self.disconnect()
        if self.address is not None:
            why = f"the supervisor at `{self.address}` has hung up"
            self._answer_greeting(PoolError(why))
        listener.on_lost(why)

    def _answer_greeting(self, error: PoolError | None) -> None:
        greeting, self._greeting = self._greeting, None
        if greeting is None or greeting.done():
            return
        if error is None:
            greeting.set_result(None)
        else:
            greeting.set_exception(error)
            greeting.exception()  # the task that waits for it may have been cancelled
