"""Several functions, one after the other, as one: `a | b`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from velo._function.event_iterator import pulled
from velo._function.signature import takes_state

__all__ = ["Chain"]


class Chain:
    """Async generator functions, one after the other, as one."""

    def __init__(self, parts: list[Callable[..., AsyncIterator[Any]]]) -> None:
        self.parts = parts
        self._have_state = [takes_state(part) for part in parts]
        self.__qualname__ = " | ".join(getattr(p, "__qualname__", repr(p)) for p in parts)
        # The chain has a state as soon as one of its parts has.
        names = ["events", "state"] if any(self._have_state) else ["events"]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])

    async def __call__(
        self, events: AsyncIterator[Any], state: dict[Any, Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Run every part on the results of the one before it, each with a state of its own."""
        state = {} if state is None else state
        async with contextlib.AsyncExitStack() as stack:
            for place, part in enumerate(self.parts):
                own = (state.setdefault(place, {}),) if self._have_state[place] else ()
                results = part(events, *own)
                if isinstance(results, AsyncGenerator):
                    # Closed in order from the last to the first, whatever ends the chain.
                    await stack.enter_async_context(contextlib.aclosing(results))
                events = pulled(results)
            async for result in results:
                yield result
