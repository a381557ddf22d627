"""Looks at the supervisors once a second, as long as somebody reads what it has seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from velo.cli.checkpoint.access import reading
from velo.cli.checkpoint.looking import summary
from velo.cli.dashboard.history import History
from velo.cli.dashboard.published import Published
from velo.cli.errors import Failure
from velo.cli.supervisor.inspect import looked_up
from velo.cli.supervisor.overview import Overview

__all__ = ["Watch"]

_EVERY = 1.0  # seconds
# The seconds that a supervisor may take for an answer. It waits for its workers less than one.
_BOUND = 2.0
_WHY = "the stream was ended by hand (`velo dashboard`)"

_T = TypeVar("_T")


class Watch:
    """The figures of the dashboard.

    Args:
        socket: The socket of the one standalone supervisor to look at; None: all.
        pid: The process id of the one program to look at; None: all.
        metrics: The addresses where programs publish metrics for Prometheus.
        checkpoints: The folders of checkpoints.

    Attributes:
        history: What the charts show.

    Raises:
        Failure: When `socket` or `pid` names a supervisor that does not run.

    """

    def __init__(
        self,
        socket: str | None,
        pid: int | None,
        metrics: Sequence[str] = (),
        checkpoints: Sequence[Path] = (),
    ) -> None:
        self.history = History()
        # Supervisors answer one order at a time: all orders go through one thread.
        self._thread = ThreadPoolExecutor(1, "velo dashboard")
        self._overview = self._thread.submit(Overview, socket, pid, _BOUND).result()
        self._published = [Published(address) for address in metrics]
        self._checkpoints = checkpoints
        self._readers = 0
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[dict[str, Any]] | None = None

    async def looks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each look from now on, once a second."""
        self._readers += 1
        try:
            while True:
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                if self._task is None:
                    self._task = asyncio.create_task(self._run())
                yield await asyncio.shield(self._next)
        finally:
            self._readers -= 1

    async def inspect(self, stream: str, key: str | None, socket: str | None) -> dict[str, Any]:
        """Return where a stream or a key stands, as `velo inspect --json` prints it."""
        found, stuck, _ = await self._ask(lambda: looked_up(self._overview, stream, key, socket))
        return {"streams": found, "stuck": stuck}

    async def end(self, socket: str, stream: str) -> dict[str, Any]:
        """End a stream, by the address that a look gives it."""
        ended = await self._ask(lambda: self._overview.end(socket, stream, _WHY))
        return {"ended": ended}

    async def _ask(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _run(self) -> None:
        try:
            while self._readers:
                begun = time.monotonic()
                try:
                    look = await self._look()
                except Exception as error:
                    # The pages lose their connection, and make another.
                    self._waited_for().set_exception(error)
                    return
                self._waited_for().set_result(look)
                await asyncio.sleep(max(0.0, begun + _EVERY - time.monotonic()))
        finally:
            self._task = None

    def _waited_for(self) -> asyncio.Future[dict[str, Any]]:
        """Return what the pages wait for, which is about to come."""
        waited, self._next = self._next, None
        return waited or asyncio.get_running_loop().create_future()

    async def _look(self) -> dict[str, Any]:
        asked = [asyncio.to_thread(published.look) for published in self._published]
        kept = [asyncio.to_thread(_checkpoint, path) for path in self._checkpoints]
        states, *others = await asyncio.gather(self._ask(self._states), *asked, *kept)
        published = others[: len(asked)]
        look: dict[str, Any] = {
            "states": states[0],
            "nothing": states[1],
            "published": published,
            "sources": [source for one in published for source in one["sources"]],
            "checkpoints": others[len(asked) :],
        }
        return {**look, **self.history.take(look)}

    def _states(self) -> tuple[list[dict[str, Any]], str | None]:
        try:
            states = self._overview.look()
        except Failure as error:
            return [], error.message
        return states, None if states else self._overview.nothing()


def _checkpoint(path: Path) -> dict[str, Any]:
    """Return what is known of a checkpoint, or why that is nothing."""
    try:
        with reading(path) as store:
            return summary(store)
    except Failure as error:
        return {"path": str(path), "error": error.message}
