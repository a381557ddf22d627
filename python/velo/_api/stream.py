"""One live stream."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from logging import DEBUG, WARNING
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo import _core
from velo._api import idle, source
from velo._api.feed import AsyncFeed
from velo._diagnostics import lifecycle_log
from velo._diagnostics.metrics import StreamMetrics
from velo._function.exceptions import hint_at_copy
from velo._time_limit import time_limit
from velo.errors import StreamClosed, VeloError, WorkerDied

if TYPE_CHECKING:
    from velo._config import StreamConfig

__all__ = ["Stream"]

In = TypeVar("In")
Out = TypeVar("Out")

_BURST = 256
# How many seconds a cancelled function has at least for its `finally` blocks.
_LEAST_GRACE = 1.0


class Stream(_core.StreamBase[In, Out], Generic[In, Out]):
    """A running copy of a stream function, and the queues to and from it.

    It belongs to the event loop and the thread that opened it. One task may send while another one
    receives; two tasks that do the same get `StreamBusy`. You can cancel any wait: no event and no
    result is lost, and the stream goes on.

    Use it as a context manager (`async with fn.open() as stream`), or close it with `aclose`.

    Attributes:
        name: Its name in errors, logs and warnings: the function and a number, `spree-3`.

    """

    __slots__ = (
        "__weakref__",
        "_config",
        "_done",
        "_loop",
        "_release",
        "_released",
        "_worked",
        "name",
    )

    def __init__(
        self,
        opened: _core.Opened,
        name: str,
        config: StreamConfig,
        loop: asyncio.AbstractEventLoop,
        release: Callable[[], None],
    ) -> None:
        self.name = name
        self._config = config
        self._loop = loop
        self._release = release
        self._released = False
        self._done = False
        self._worked = False
        lifecycle_log.stream(DEBUG, name, "opened")
        if config.timeout is not None:
            idle.watch(loop, self, config.timeout)

    # `send`, `recv`, `send_batch`, `recv_batch` and iteration are the base's.

    def end(self) -> _core.Operation[None]:
        """End the input: the function's loop ends, and its remaining results can be received.

        It does nothing if the input has ended already. A task that waits to send gets
        `StreamClosed`. `end` waits only while the queue has no room for the end itself; if that
        wait is cancelled, call it again.

        Raises:
            StreamBusy: From another thread or event loop.

        """
        return self._end("the input was ended by `end()`")

    def feed(
        self, events: Iterable[In] | AsyncIterable[In], *, progress: bool = False
    ) -> AsyncIterator[Out]:
        """Send all events while receiving: `async for result in stream.feed(events)`.

        Events are taken from the source when the function has room for them; results arrive in
        order. A plain iterable that may wait, such as a generator, is read in a thread, so that
        each result arrives as it comes. The iteration ends once the function has finished every
        event, or has ended. The stream stays open, with its state. Results that the function yields
        after its loop arrive after `end()`.

        After a `break`, the function still handles the events that were sent, and you can receive
        their results. A cancelled wait loses nothing.

        Args:
            events: The source.
            progress: Whether to show how many events were taken from the source, in a terminal (on
                stderr) or a notebook.

        Raises:
            StreamClosed: When the input has ended already.
            StreamBusy: When another task sends or receives, or from another thread or event loop.
            Exception: Exceptions of the source, which cancel the stream; of the function, after the
                results before them; and of `send`, about an event.

        """
        if progress:
            from velo._api.progress import shown

            events = shown(events, self.name)
        if isinstance(events, AsyncIterable):
            return self._feed_async(events)
        return self._feed(source.plain(events, self._config.buffer, self._loop))

    def _run_plain(self, events: Iterable[In]) -> Awaitable[list[Out]]:
        return self._run(source.plain(events, self._config.buffer, self._loop))

    def _feed_async(self, events: AsyncIterable[In]) -> AsyncFeed[In, Out]:
        return AsyncFeed(self, events, self.name)

    @property
    def metrics(self) -> StreamMetrics:
        """A snapshot of the stream's counters, also after it has closed."""
        return StreamMetrics(**self._metrics())

    @property
    def stream_id(self) -> str:
        """The same as `name`, as velo-stream 0.x called it."""
        return self.name

    @property
    def closed(self) -> bool:
        """Whether the stream takes no more events."""
        return self._closed is not None

    def _repr_html_(self) -> str:
        from velo._api.notebook import stream_html

        return stream_html(self)

    async def aclose(self) -> None:
        """Close the stream: end its input, and drop its remaining results.

        It waits until the function has handled all events and has ended, at most `close_timeout`
        seconds; then it cancels the function. A function that yields without end is closed like an
        abandoned generator.

        If the worker has died while the function waited for its next event, no event is lost, and
        closing only logs a warning (logger `velo.streams`).

        Raises:
            Exception: The exception of the function, if no task has received it.

        """
        if self._done:
            return
        self._done = True
        answered = self._answered
        try:
            async with time_limit(self._config.close_timeout):
                await self._discard()
        except TimeoutError:
            if self._over:
                raise  # the function's own
            await self._stop()
        except StreamClosed:
            if not self._cancelled:
                raise  # the function's own
        except WorkerDied as died:
            # Right after a result, its event may still be in flight, and its function count as
            # running.
            outside = died.signal == signal.SIGKILL and not died.why
            lost = died.in_flight - (outside and answered)
            if lost > 0 or (died.culprit and not outside):
                raise
            lifecycle_log.stream(
                WARNING,
                self.name,
                "is closed, but its worker process %d had died: no code after its last event, and "
                "no `finally` block, has run",
                died.pid,
            )
        except BaseException:
            await self._stop()
            raise
        finally:
            self._give_back()

    async def close(self) -> None:
        """Do the same as `aclose`."""
        await self.aclose()

    async def _discard(self) -> None:
        """End the input and drop results up to the end.

        A task that is receiving still gets its results. A function that yields more than its buffer
        holds after its last event is cancelled.
        """
        dropped = 0
        while not self._over:
            self._try_end("the stream is closed")  # it may need room, which is made below
            if self._has_receiver:
                await self._wait_for_end()
                await asyncio.sleep(0)  # the receiving task needs a turn to take them
                continue
            results, over = self._drain(_BURST)
            if over:
                return
            sent, handled = self._progress()
            dropped = dropped + len(results) if sent == handled else 0
            if dropped > 2 * self._config.buffer:
                return await self._stop()
            await (asyncio.sleep(0) if results else self._wait_for_end())

    async def _stop(self) -> None:
        """Cancel the function and wait for its `finally` blocks."""
        self._done = True
        if self._over:
            return
        self._cancel()
        grace = max(self._config.close_timeout, _LEAST_GRACE)
        try:
            async with time_limit(grace):
                while not self._over:
                    results: list[Out] = []
                    with contextlib.suppress(Exception):  # the stream is being thrown away
                        results, _ = self._drain(_BURST)
                    if not self._over:
                        await (asyncio.sleep(0) if results else self._wait_for_end())
        except TimeoutError:
            warnings.warn(
                f"stream `{self.name}` did not end within {grace} s of being cancelled; it is left "
                "behind",
                RuntimeWarning,
                stacklevel=2,
            )

    async def __aenter__(self) -> Stream[In, Out]:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            await self.aclose()
            return
        hint_at_copy(error)
        try:
            if not self._done:
                await self._stop()
        finally:
            self._give_back()

    def _idle_seconds(self) -> float:
        """Return the seconds since the stream was used; 0 while the function has events left."""
        sent, handled = self._progress()
        worked, self._worked = self._worked, sent != handled
        if worked or self._worked:
            self._touch()  # the idle time begins once the work is seen to be done
        return self._idle()

    def _expire(self, timeout: float) -> None:
        async def end() -> None:
            await self._end(f"idle for {timeout} s")

        self._loop.create_task(end(), name=f"{self.name} timeout")

    def _give_back(self) -> None:
        if not self._released:
            self._released = True
            self._release()
            lifecycle_log.stream(DEBUG, self.name, "closed")

    def __repr__(self) -> str:
        """Name and state."""
        state = "over" if self._over else "closed" if self.closed else "open"
        return f"<Stream `{self.name}` {state}>"

    def __del__(self) -> None:
        if getattr(self, "_released", True):
            return
        left = not self._over
        if left:
            # Any thread may collect garbage, after the loop or the worker has gone.
            with contextlib.suppress(VeloError, RuntimeError):
                self._loop.call_soon_threadsafe(self._canceller)
        self._give_back()
        if left:  # with `-W error` this raises
            warnings.warn(
                f"stream `{self.name}` was never closed; use `async with`, or `await aclose()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
