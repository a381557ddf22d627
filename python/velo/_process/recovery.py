"""Streams with `recover="replay"`: another worker takes over those whose worker is gone."""

from __future__ import annotations

import asyncio
import functools
import weakref
from typing import TYPE_CHECKING, Any

from velo.errors import PoisonEvent, PoolError, WorkerDied

if TYPE_CHECKING:
    from velo import _core
    from velo._config import StreamConfig
    from velo._function.reference import Reference
    from velo._process.client import Client
    from velo._process.links import Link

__all__ = ["keep"]

Keep = tuple[int, bool, int, Any]


def keep(client: Client, function: Reference, config: StreamConfig) -> Keep:
    """Return how a new stream is kept that recovers, as `ClientLink.open` takes it."""
    recover = functools.partial(_recover, weakref.ref(client), function, config)
    return config.journal_limit, function.has_state, config.max_restarts, recover


def _recover(
    client_of: weakref.ref[Client],
    function: Reference,
    config: StreamConfig,
    stream: _core.Recovery,
    died: WorkerDied | None,
    poison: tuple[int, bool] | None,
) -> None:
    """Have another worker take a stream over.

    Args:
        client_of: Where workers are found.
        function: What the stream runs.
        config: How.
        stream: The stream, which is still where it was.
        died: How its worker died; None if it lives, and the stream is only to leave it.
        poison: The event at which the function has ended its workers too often, and whether it was
            at work on it.

    """
    client = client_of()
    loop = asyncio.get_running_loop()
    if client is None:
        raise PoolError("the event loop of this stream is closed")
    if poison is not None:
        assert died is not None
        number, at_work = poison
        if not at_work:
            where = f"after event {number}" if number else "before its first event"
            died.add_note(
                f"the stream is given up after {config.max_restarts} restarts: its function ends "
                f"its worker every time, {where}"
            )
            stream.fail(died)
            return
        if config.on_poison == "fail":
            stream.fail(_poison(stream, number, died, config))
            return
        if callable(config.on_poison):
            _hand_over(loop, config.on_poison, stream, number)
        stream.leave_out(number)
    if died is None:
        assert client.left is not None
        client.start(_move(client, function, config, stream, client.left))
        return
    stream.begin()
    client.start(_find_worker(client, function, config, stream, died, None))


def _poison(
    stream: _core.Recovery, number: int, died: WorkerDied, config: StreamConfig
) -> PoisonEvent:
    event = None
    try:
        event = stream.event(number)
    except Exception as error:
        died.add_note(f"event {number} cannot be shown: {error!r}")
    poison = PoisonEvent.of(died, number, event, config.max_restarts)
    poison.__cause__ = died
    return poison


def _hand_over(
    loop: asyncio.AbstractEventLoop, hook: Any, stream: _core.Recovery, number: int
) -> None:
    """Call the user's hook. What it raises is reported, and does not hold up the stream."""
    try:
        hook(stream.name, stream.event(number))
    except Exception as error:
        loop.call_exception_handler(
            {
                "message": f"`on_poison` of stream `{stream.name}` failed at event {number}",
                "exception": error,
            }
        )


async def _move(
    client: Client,
    function: Reference,
    config: StreamConfig,
    stream: _core.Recovery,
    left: Link,
) -> None:
    """Move a stream from a worker that lives, once there is a better one. Until then it goes on."""
    try:
        better = await client.has_better(left, function, config)
    except PoolError:
        return
    if better and stream.may_leave(left.end):
        stream.begin()
        await _find_worker(client, function, config, stream, None, left)


async def _find_worker(
    client: Client,
    function: Reference,
    config: StreamConfig,
    stream: _core.Recovery,
    died: WorkerDied | None,
    avoid: Link | None,
) -> None:
    try:
        await client.take_over(stream, function, config, avoid)
    except BaseException as error:
        failure = died if died is not None else PoolError(f"no other worker: {error}")
        failure.__cause__ = error
        stream.fail(failure)
        if not isinstance(error, Exception):
            raise
