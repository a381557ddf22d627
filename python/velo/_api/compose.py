"""`a | b`: one function's results are the next one's events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from velo._api.function import StreamFn
from velo._config import StreamConfig
from velo._function.event_iterator import pulled
from velo._function.signature import takes_state

__all__ = ["Chain", "compose"]


def compose(first: StreamFn[Any, Any], then: StreamFn[Any, Any]) -> StreamFn[Any, Any]:
    """Return one stream function that runs both, with the stricter of their settings.

    Neighbours of one mode, and of one supervisor, run side by side in one place: no event crosses a
    process between them. Where they differ, the whole runs inline, and what is to run in a worker
    still does.
    """
    config = _strictest(first.config, then.config)
    if _place(first.config) == _place(then.config):
        return StreamFn(Chain([*_parts(first), *_parts(then)]), config)
    parts: list[Callable[..., Any]] = []
    for fn in (first, then):
        parts.extend(_parts(fn) if fn.config.mode == "inline" else [_Crossing(fn)])
    return StreamFn(Chain(parts), config.replace(mode="inline", workers=None))


def _place(config: StreamConfig) -> tuple[str, str]:
    """Return where streams run; of process mode, whose workers."""
    return (config.mode, config.supervisor if config.mode == "process" else "")


def _parts(fn: StreamFn[Any, Any]) -> list[Callable[..., Any]]:
    function = fn._function
    return list(function.parts) if isinstance(function, Chain) else [function]


def _strictest(a: StreamConfig, b: StreamConfig) -> StreamConfig:
    def least(name: str) -> Any:
        limits = [limit for config in (a, b) if (limit := getattr(config, name)) is not None]
        return min(limits, default=None)

    names = (
        *("buffer", "timeout", "max_concurrent", "workers", "max_bytes"),
        *("max_worker_memory", "event_timeout", "stall_timeout", "close_timeout"),
        *("journal_limit", "max_restarts"),
    )
    overflow = "error" if "error" in (a.overflow, b.overflow) else "wait"
    recover = "replay" if "replay" in (a.recover, b.recover) else "none"
    on_poison = a.on_poison if a.on_poison != "fail" else b.on_poison
    preload = tuple(dict.fromkeys(a.preload + b.preload))
    record = a.record if a.record is not None else b.record
    return a.replace(
        overflow=overflow,
        preload=preload,
        record=record,
        recover=recover,
        on_poison=on_poison,
        **{name: least(name) for name in names},
    )


class Chain:
    """Async generator functions, one after the other, as one."""

    def __init__(self, parts: list[Callable[..., AsyncIterator[Any]]]) -> None:
        self.parts = parts
        self._have_state = [takes_state(part) for part in parts]
        self.__qualname__ = " | ".join(getattr(p, "__qualname__", repr(p)) for p in parts)

    @property
    def has_state(self) -> bool:
        """Whether a part of it is called with a state."""
        return any(self._have_state)

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


class _Crossing:
    """A stream function of another mode, as a part of an inline chain."""

    def __init__(self, fn: StreamFn[Any, Any]) -> None:
        self._fn = fn
        self.__qualname__ = fn._name

    async def __call__(self, events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        failures: list[Exception] = []

        async def upstream() -> AsyncGenerator[Any, None]:
            # A part that fails has yielded results before: they go all the way first.
            try:
                async for event in events:
                    yield event
            except Exception as error:
                failures.append(error)

        async with self._fn.open() as stream:
            async with contextlib.aclosing(stream._feed_async(upstream())) as results:
                async for result in results:
                    yield result
            if failures and not stream._over:
                raise failures[0]  # a function that has ended would not have asked for it
            await stream.end()
            async for result in stream:
                yield result
