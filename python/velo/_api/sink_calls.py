"""Calls of a sink: one at a time, and with a word when they take long."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from velo._api.patience import waiting_for
from velo._diagnostics.source_figures import name_of

if TYPE_CHECKING:
    from velo.connect.model import Sink

__all__ = ["Refused", "SinkCalls", "kind_of"]

Refused = Callable[[Any, Any, Exception], Awaitable[None]]
"""What becomes of a result that the sink refuses: called with its key, the result and why."""


class SinkCalls:
    """A sink whose calls wait for each other: results are written while others are flushed.

    Attributes:
        name: The sink's name, for messages.
        takes_back: Whether it can say how far it has results, and take back what came after.
        commits: Whether it has a commit point of its own.

    Args:
        sink: The sink.
        name: What messages call it.

    Raises:
        TypeError: When it is no sink.

    """

    def __init__(self, sink: Sink, name: str) -> None:
        if isinstance(sink, type) or not _has(sink, "write", "flush"):
            raise TypeError(
                f"{name} has the methods `write` and `flush`, as `connect.file(PATH)` has; "
                f"{kind_of(sink)} is none"
            )
        self.name = name_of(sink)
        self.takes_back = _has(sink, "mark", "rewind")
        self.commits = _has(sink, "begin", "commit")
        self._sink = sink
        self._role = name
        self._lock = asyncio.Lock()

    async def write(self, results: Sequence[tuple[Any, Any]]) -> None:
        """See `Sink`."""
        await self._call("write", results)

    async def write_each(self, results: Sequence[tuple[Any, Any]], refused: Refused) -> None:
        """Write results; those that the sink refuses are dealt with one by one."""
        try:
            await self.write(results)
        except (TypeError, ValueError):
            for key, result in results:
                try:
                    await self.write([(key, result)])
                except (TypeError, ValueError) as error:
                    await refused(key, result, error)

    async def flush(self) -> None:
        """See `Sink`."""
        await self._call("flush")

    async def mark(self) -> Any:
        """See `Sink`."""
        return await self._call("mark")

    async def rewind(self, mark: Any) -> None:
        """See `Sink`."""
        await self._call("rewind", mark)

    async def begin(self, name: str, epoch: int) -> int:
        """See `Sink`."""
        last: int = await self._call("begin", name, epoch)
        return last

    async def commit(self, epoch: int, positions: Mapping[Any, Any]) -> None:
        """See `Sink`."""
        await self._call("commit", epoch, positions)

    async def _call(self, method: str, *arguments: Any) -> Any:
        async with self._lock:
            call: Any = getattr(self._sink, method)(*arguments)
            if not inspect.isawaitable(call):
                raise RuntimeError(f"`{method}` of {self._role} must be an `async` method")
            with waiting_for(f"`{method}`", self._sink):
                return await call


def _has(thing: Any, *methods: str) -> bool:
    return all(hasattr(thing, method) for method in methods)


def kind_of(thing: Any) -> str:
    """Name a thing that is of the wrong kind."""
    if isinstance(thing, type):
        return f"the class `{thing.__name__}` itself"
    return "None" if thing is None else f"an object of `{type(thing).__name__}`"
