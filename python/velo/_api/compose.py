"""`a | b`: one function's results are the next one's events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Literal

from velo._api.opener import Opening, StreamOpener
from velo._config import StreamConfig
from velo._function.chain import Chain
from velo._function.reference import build, describe
from velo._function.spec import FunctionSpec

__all__ = ["compose"]


def compose(
    first: StreamOpener[Any, Any], then: StreamOpener[Any, Any]
) -> tuple[Chain, StreamConfig]:
    """Return one function that runs both, and the stricter of their settings.

    Neighbours of one mode, and of one supervisor, run side by side in one place: no event crosses a
    process between them. Where they differ, the whole runs inline, and the parts in process mode
    still run in workers.
    """
    config = _strictest(first.spec.config, then.spec.config)
    if _runs_in(first.spec.config) == _runs_in(then.spec.config):
        return Chain([*_parts(first), *_parts(then)]), config
    parts: list[Callable[..., Any]] = []
    for opener in (first, then):
        inline = opener.spec.config.mode == "inline"
        parts.extend(_parts(opener) if inline else [_Crossing(opener)])
    return Chain(parts), config.replace(mode="inline", workers=None)


def _runs_in(config: StreamConfig) -> tuple[str, str]:
    """Return where streams run: the mode, and in process mode the supervisor."""
    return (config.mode, config.supervisor if config.mode == "process" else "")


def _parts(opener: StreamOpener[Any, Any]) -> list[Callable[..., Any]]:
    function = opener.spec.function
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
    overflow: Literal["wait", "error"] = "error" if "error" in (a.overflow, b.overflow) else "wait"
    recover: Literal["none", "replay"] = "replay" if "replay" in (a.recover, b.recover) else "none"
    on_poison = a.on_poison if a.on_poison != "fail" else b.on_poison
    preload = tuple(dict.fromkeys(a.preload + b.preload))
    record = a.record if a.record is not None else b.record
    settings: dict[str, Any] = {name: least(name) for name in names}
    return a.replace(
        overflow=overflow,
        preload=preload,
        record=record,
        recover=recover,
        on_poison=on_poison,
        state_version=1,  # the state of a chain holds those of its parts
        migrate=None,
        **settings,
    )


class _Crossing:
    """A stream function in process mode, as a part of an inline chain."""

    def __init__(self, opener: StreamOpener[Any, Any]) -> None:
        self._opener = opener
        self.__qualname__ = opener.spec.name

    async def __call__(self, events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        failures: list[Exception] = []

        async def upstream() -> AsyncGenerator[Any, None]:
            # A part that fails has yielded results before: they go all the way first.
            try:
                async for event in events:
                    yield event
            except Exception as error:
                failures.append(error)

        async with Opening(self._opener) as stream:
            async with contextlib.aclosing(stream._feed_async(upstream())) as results:
                async for result in results:
                    yield result
            if failures and not stream._over:
                raise failures[0]  # a function that has ended would not have asked for it
            await stream.end()
            async for result in stream:
                yield result

    def __reduce__(self) -> Any:
        """Travel as function and settings: permits and counters belong to a process."""
        spec = self._opener.spec
        return _restore, (describe(spec.function), spec.config)


def _restore(described: Any, config: StreamConfig) -> _Crossing:
    return _Crossing(StreamOpener(FunctionSpec(build(described), config)))
