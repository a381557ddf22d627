"""Feeding a stream from an async source: one task sends while the caller receives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any, Generic, TypeVar

from velo import _core
from velo.errors import StreamClosed

__all__ = ["AsyncFeed"]

In = TypeVar("In")
Out = TypeVar("Out")


class AsyncFeed(AsyncIterator[Out], Generic[In, Out]):
    """The results of `stream.feed(async_source)`.

    Once it is closed, by `aclose` or by garbage collection, it sends no more: an event that was
    taken from the source and not sent goes before the next one that is sent. After a cancelled wait
    for results it sends nothing until the next wait.

    Args:
        stream: The stream.
        events: The source.
        name: The stream's name.

    """

    def __init__(
        self, stream: _core.StreamBase[In, Out], events: AsyncIterable[In], name: str
    ) -> None:
        self._stream = stream
        self._name = name
        self._events = events
        self._results: _core.Results[Out] | None = None
        self._sender: _Sender[In] | None = None
        # The results, between the first wait and a cancelled one.
        self._ready: _core.Results[Out] | None = None

    def __aiter__(self) -> AsyncFeed[In, Out]:
        return self

    async def __anext__(self) -> Out:
        if self._ready is None:
            self._ready = self._begin()
        try:
            return await anext(self._ready)
        except asyncio.CancelledError:
            # The caller may keep this object for a long time without asking for results.
            self._ready = None
            if self._sender is not None:
                self._sender.pause()
            raise
        except (StopAsyncIteration, StreamClosed):
            # The source has failed, which has cancelled the stream: its exception says more.
            if self._sender is not None and self._sender.failure is not None:
                raise self._sender.failure from None
            raise

    def _begin(self) -> _core.Results[Out]:
        if self._sender is None:
            if (closed := self._stream._closed) is not None:
                raise StreamClosed(closed)
            self._results = self._stream._feed_beside()
            self._sender = _Sender(self._stream, self._events, self._results, self._name)
        elif self._results is None:
            raise StopAsyncIteration  # it was closed
        else:
            self._sender.resume()
        return self._results

    async def aclose(self) -> None:
        """Stop sending, and close the source if it is a generator."""
        self._results = self._ready = None
        if self._sender is not None:
            self._sender.stop()
            await asyncio.wait([self._sender.task])

    def __del__(self) -> None:
        if self._sender is not None:
            self._sender.stop()


class _Sender(Generic[In]):
    """The task that sends. It has no reference to the `AsyncFeed`, so that one can be collected."""

    def __init__(
        self,
        stream: _core.StreamBase[In, Any],
        events: AsyncIterable[In],
        results: _core.Results[Any],
        name: str,
    ) -> None:
        self.failure: BaseException | None = None
        self._stream = stream
        self._sending: _core.Operation[None] | None = None
        self._paused: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run(events), name=f"{name} source")
        self.task.add_done_callback(lambda _: results._all_sent())

    def stop(self) -> None:
        """Send no more. The event in hand goes before the next one that is sent."""
        if not self.task.done():
            if self._sending is not None:
                self._sending.close()
            with contextlib.suppress(RuntimeError):  # the loop may be closed
                self.task.cancel()

    def pause(self) -> None:
        """Stop waiting for room, so that other tasks can send."""
        if self._paused is None:
            self._paused = self._loop.create_future()
            if self._sending is not None:
                self._sending._pause()

    def resume(self) -> None:
        """Go on sending."""
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
                    # If the function has ended early, its results show that.
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
