"""Streams that go to another worker: with `recover="replay"`, or before they have begun."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from velo import _core
from velo.errors import PoisonEvent, PoolError, WorkerDied

if TYPE_CHECKING:
    from velo._config import StreamConfig
    from velo._function.reference import Reference
    from velo._process.links import Link

__all__ = ["begin_elsewhere", "give_up", "hand_over", "poison_event", "terms"]


class Mover(Protocol):
    """The client, as far as streams on their way to another worker need it."""

    @property
    def left(self) -> Link | None:
        """The link that streams are leaving right now."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the user's tasks."""

    async def has_better(self, left: Link, function: Reference, config: StreamConfig) -> bool:
        """Make another worker ready, and return whether it is better than the one to leave."""

    async def take_over(
        self, stream: _core.Recovery, function: Reference, config: StreamConfig, avoid: Link | None
    ) -> None:
        """Have another worker take a stream over."""


def terms(client: Mover, function: Reference, config: StreamConfig) -> _core.RecoveryTerms:
    """Return the terms of a stream that recovers, as `ClientLink.open` takes them."""
    recover = functools.partial(_recover, weakref.ref(client), function, config)
    return _core.RecoveryTerms(
        journal_limit=config.journal_limit,
        has_state=function.has_state,
        max_restarts=config.max_restarts,
        recover=recover,
    )


def _recover(
    client_of: weakref.ref[Mover],
    function: Reference,
    config: StreamConfig,
    stream: _core.Recovery,
    died: WorkerDied | None,
    poison: _core.Poison | None,
) -> None:
    """Move a stream to another worker.

    Args:
        client_of: Returns the client, which finds the worker.
        function: The stream's function.
        config: Its settings.
        stream: The stream, which has not left its link yet.
        died: How its worker died. None: the worker lives, and the stream only leaves it.
        poison: The number of the event at which the function has ended its workers too often, and
            whether it was handling that event.

    """
    client = client_of()
    loop = asyncio.get_running_loop()
    if client is None:
        raise PoolError("the event loop of this stream is closed")
    if poison is not None:
        assert died is not None
        number, at_work = poison.event, poison.at_work
        if not at_work:
            give_up(died, number, config)
            stream.fail(died)
            return
        if config.on_poison == "fail":
            event, failure = _event(stream, number)
            if failure is not None:
                died.add_note(f"event {number} cannot be shown: {failure!r}")
            stream.fail(poison_event(died, number, event, config))
            return
        if callable(config.on_poison):
            event, failure = _event(stream, number)
            hand_over(loop, config.on_poison, stream.name, number, event, failure)
        stream.leave_out(number)
    if died is None:
        assert client.left is not None
        client.start(_move(client, function, config, stream, client.left))
        return
    stream.begin()
    client.start(_find_worker(client, function, config, stream, died, None))


def begin_elsewhere(client: Mover, stream: _core.Recovery, died: WorkerDied) -> None:
    """Have another worker run a stream that its worker, which has died, had not opened."""
    function, config = stream.origin
    client.start(_find_worker(client, function, config, stream, died, None))


def give_up(died: WorkerDied, number: int, config: StreamConfig) -> None:
    """Note that a function ends its worker every time, past event `number`."""
    where = f"after event {number}" if number else "before its first event"
    died.add_note(
        f"the stream is given up after {config.max_restarts} restarts: its function ends its "
        f"worker every time, {where}"
    )


def poison_event(died: WorkerDied, number: int, event: Any, config: StreamConfig) -> PoisonEvent:
    """Return the error for an event at which a function ends its worker every time."""
    poison = PoisonEvent.of(died, number, event, config.max_restarts)
    poison.__cause__ = died
    return poison


def hand_over(
    loop: asyncio.AbstractEventLoop,
    hook: Any,
    stream: str,
    number: int,
    event: Any,
    failure: Exception | None,
) -> None:
    """Call the user's hook with an event, or report why there is none.

    Exceptions of the hook go to the event loop's handler; the stream goes on.
    """
    try:
        if failure is not None:
            raise failure
        hook(stream, event)
    except Exception as error:
        loop.call_exception_handler(
            {
                "message": f"`on_poison` of stream `{stream}` failed at event {number}",
                "exception": error,
            }
        )


def _event(stream: _core.Recovery, number: int) -> tuple[Any, Exception | None]:
    """Return an event, or why it cannot be decoded in this process."""
    try:
        return stream.event(number), None
    except Exception as error:
        return None, error


async def _move(
    client: Mover,
    function: Reference,
    config: StreamConfig,
    stream: _core.Recovery,
    left: Link,
) -> None:
    """Move a stream from a live worker once there is a better one. Until then it goes on."""
    try:
        better = await client.has_better(left, function, config)
    except PoolError:
        return
    if better and left.end.may_lose(stream):
        stream.begin()
        await _find_worker(client, function, config, stream, None, left)


async def _find_worker(
    client: Mover,
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
