"""Feeding a stream from an async source: one task sends while the caller receives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo import _core
from velo.errors import StreamClosed

if TYPE_CHECKING:
    from velo._api.stream import Stream

__all__ = ["AsyncFeed"]

In = TypeVar("In")
Out = TypeVar("Out")


class AsyncFeed(AsyncIterator[Out], Generic[In, Out]):
    """The results of `stream.feed(async_source)`.

    Letting go of it, by `aclose` or by dropping it, stops the sending at once: an event that was
    taken from the source and not sent goes before whatever is sent next. While nobody waits for
    results because a wait was cancelled, it stands aside, and goes on with the next wait.
    """

    def __init__(self, stream: Stream[In, Out], events: AsyncIterable[In]) -> None:
        self._stream = stream
        self._events = events
        self._results: _core.Results[Out] | None = None
        self._sender: _Sender[In] | None = None
        # The results while they can simply be waited for: not before the first wait, and not after
        # one that was cancelled.
        self._ready: _core.Results[Out] | None = None

    def __aiter__(self) -> AsyncFeed[In, Out]:
        return self

    async def __anext__(self) -> Out:
        if self._ready is None:
            self._ready = self._begin()
        try:
            return await anext(self._ready)
        except asyncio.CancelledError:
            # Whoever was cancelled may hold on to this for longer than it takes to send something.
            self._ready = None
            if self._sender is not None:
                self._sender.pause()
            raise
        except (StopAsyncIteration, StreamClosed):
            # A source that failed has cancelled the stream: what it raised says more.
            if self._sender is not None and self._sender.failure is not None:
                raise self._sender.failure from None
            raise

    def _begin(self) -> _core.Results[Out]:
        if self._sender is None:
            if (closed := self._stream._closed) is not None:
                raise StreamClosed(closed)
            self._results = self._stream._feed_beside()
            self._sender = _Sender(self._stream, self._events, self._results)
        elif self._results is None:
            raise StopAsyncIteration  # it was closed
        else:
            self._sender.resume()
        return self._results

    async def aclose(self) -> None:
        """Stop sending, and close the source if it is a generator."""
        if self._sender is not None:
            self._sender.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._sender.task])
        self._results = self._ready = None

    def __del__(self) -> None:
        if self._sender is not None:
            self._sender.stop()


class _Sender(Generic[In]):
    """The task that sends. It knows nothing of the `AsyncFeed`, so that one can be dropped."""

    def __init__(
        self, stream: Stream[In, Any], events: AsyncIterable[In], results: _core.Results[Any]
    ) -> None:
        self.failure: BaseException | None = None
        self._stream = stream
        self._sending: _core.Operation[None] | None = None
        self._paused: asyncio.Future[None] | None = None
        self.task = stream._loop.create_task(self._run(events), name=f"{stream.name} source")
        self.task.add_done_callback(lambda _: results._all_sent())

    def stop(self) -> None:
        """Send no more. The event in hand goes before whatever is sent next."""
        if not self.task.done():
            if self._sending is not None:
                self._sending.close()
            with contextlib.suppress(RuntimeError):  # the loop may be closed
                self.task.cancel()

    def pause(self) -> None:
        """Wait for nothing that others may want to wait for."""
        if self._paused is None:
            self._paused = self._stream._loop.create_future()
            if self._sending is not None:
                self._sending._pause()

    def resume(self) -> None:
        """Go on."""
        paused, self._paused = self._paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)
        if self._sending is not None:
            self._sending._resume()

    async def _run(self, events: AsyncIterable[In]) -> None:
        source = aiter(events)
        try:
            while True:
                try:
                    event = await anext(source)
                except StopAsyncIteration:
                    return
                sending = self._stream._send_taken(event)
                while self._paused is not None:
                    await self._paused
                self._sending = sending
                try:
                    await sending
                except StreamClosed as closed:
                    # A function that has ended early says so by its results.
                    if self._stream._input_ended and not self._stream._cancelled:
                        self.failure = closed
                    return
                self._sending = None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
            self._stream._cancel()
        finally:
            self._sending = None
            if isinstance(source, AsyncGenerator):
                await source.aclose()
