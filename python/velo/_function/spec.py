"""A stream function with its settings, and what its streams share in this process."""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Callable

from velo import _core
from velo._config import StreamConfig
from velo._diagnostics import function_stats
from velo._function.limiter import Limiter
from velo._function.signature import check, takes_state
from velo._types import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velo._function.reference import Reference

__all__ = ["FunctionSpec"]


class FunctionSpec:
    """A stream function and its settings, before any of its streams opens.

    Attributes:
        function: The function itself.
        runs: The callable that its streams run: the function, recorded with `config.record`.
        name: Its name in errors, logs and warnings.
        config: Its settings.
        has_state: Whether it is called with a state besides its events.
        limiter: Bounds its open streams, if `config.max_concurrent` does.
        stats: Totals over all of its streams.

    Raises:
        TypeError: When it cannot be a stream function; the message says why.

    """

    def __init__(self, function: Callable[..., AsyncIterator[Any]], config: StreamConfig) -> None:
        check(function)
        self.function = function
        self.runs = function
        if config.record is not None:
            from velo._function.recording import Recorded

            self.runs = Recorded(function, str(config.record))
        self.name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self.config = config
        self.has_state = takes_state(function)
        self.limiter = Limiter(config.max_concurrent) if config.max_concurrent else None
        self.stats = _core.FunctionStats()
        self._numbers = itertools.count(1)
        self._reference: Reference | None = None
        module = getattr(function, "__module__", None) or "?"
        function_stats.keep(self, f"{module}:{self.name}", config.mode, self.stats)

    @property
    def reference(self) -> Reference:
        """How the function, with the values that it uses now, travels to workers."""
        reference = self._reference
        if reference is None or reference.is_outdated():
            from velo._function.reference import Reference

            reference = self._reference = Reference(self.runs, self.config)
        return reference

    def apart(self) -> FunctionSpec:
        """Give the same function with a `max_concurrent` of its own; totals stay common."""
        other = copy.copy(self)
        other.limiter = None if self.limiter is None else Limiter(self.config.max_concurrent or 1)
        return other

    def next_name(self) -> str:
        """Return the name of the next stream: the function's, and a number."""
        return f"{self.name}-{next(self._numbers)}"

    def try_acquire(self) -> Callable[[], None] | None:
        """Take a permit for a stream if one is free now, and return the call that releases it."""
        if self.limiter is None:
            return _nothing
        return self.limiter.release if self.limiter.try_acquire() else None

    async def acquire(self) -> Callable[[], None]:
        """Take a permit for a stream, and return the call that releases it.

        Raises:
            PoolError: When none is free, with `overflow="error"`.

        """
        if self.limiter is None:
            return _nothing
        if self.config.overflow == "wait":
            await self.limiter.acquire()
        elif not self.limiter.try_acquire():
            from velo.errors import PoolError

            raise PoolError(
                f"`{self.name}` has {self.config.max_concurrent} open streams, which is its "
                "`max_concurrent`"
            )
        return self.limiter.release


def _nothing() -> None:
    pass
