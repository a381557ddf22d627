"""One live stream."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from logging import DEBUG
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from velo import _core
from velo._api import idle
from velo._api.feed import AsyncFeed
from velo._diagnostics import lifecycle_log
from velo._diagnostics.metrics import StreamMetrics
from velo.errors import StreamClosed, VeloError

if TYPE_CHECKING:
    from velo._config import StreamConfig

__all__ = ["Stream"]

In = TypeVar("In")
Out = TypeVar("Out")

_BURST = 256
# A cancelled function has at least so many seconds for its `finally` blocks.
_LEAST_GRACE = 1.0


class Stream(_core.StreamBase[In, Out], Generic[In, Out]):
    """A running copy of a stream function, and the queues to and from it.

    It belongs to the event loop and the thread that opened it. One task may send while another one
    receives; two tasks that do the same get `StreamBusy`. All waits may be cancelled: no event and
    no result is lost, and the stream can be used on.

    Use it as a context manager (`async with fn.open() as stream`), or close it with `aclose`.

    Attributes:
        name: What errors, logs and warnings call it: its function and a number, `spree-3`.

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

        Harmless when the input has ended already. A task that waits to send gets `StreamClosed`.
        Waits only while not even the end has room; if that wait is cancelled, call it again.

        Raises:
            StreamBusy: From another thread or event loop.

        """
        return self._end("the input was ended by `end()`")

    def feed(self, events: Iterable[In] | AsyncIterable[In]) -> AsyncIterator[Out]:
        """Send all events while receiving: `async for result in stream.feed(events)`.

        Events are taken from the source as the function has room for them, results come in order.
        The iteration ends once the function is done with every event, or has ended; the stream
        stays open, with its state, for more. What the function yields after its loop comes after
        `end()`.

        After a `break`, events that were sent are still worked on; their results can be received.
        A cancelled wait loses nothing.

        Raises:
            StreamClosed: When the input has ended already.
            StreamBusy: When another task sends or receives, or from another thread or event loop.
            Exception: What the source raised, which cancels the stream; what the function raised,
                after the results that came before; what `send` raises of an event.

        """
        if isinstance(events, AsyncIterable):
            return self._feed_async(events)
        return self._feed(events)

    def _feed_async(self, events: AsyncIterable[In]) -> AsyncFeed[In, Out]:
        return AsyncFeed(self, events)

    @property
    def metrics(self) -> StreamMetrics:
        """What the stream has done so far, a snapshot. Also when it is closed."""
        return StreamMetrics(*self._metrics())

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed is not None

    async def aclose(self) -> None:
        """Close the stream: its input ends, and what it still yields is dropped.

        Waits until the function has worked on all events and has ended, for at most
        `close_timeout` seconds; then it is cancelled. A function that goes on yielding without end
        is closed like any abandoned generator.

        Raises:
            Exception: What the function raised, if nobody has received it yet.

        """
        if self._done:
            return
        self._done = True
        try:
            async with asyncio.timeout(self._config.close_timeout):
                await self._discard()
        except TimeoutError:
            if self._over:
                raise  # the function's own
            await self._stop()
        except StreamClosed:
            if not self._cancelled:
                raise  # the function's own
        except BaseException:
            await self._stop()
            raise
        finally:
            self._give_back()

    async def _discard(self) -> None:
        """End the input and drop results up to the end.

        A function that does not end is closed after a while.

        Results are left to a task that is receiving them.
        """
        dropped = 0
        while not self._over:
            self._try_end("the stream is closed")  # may take room that is only made below
            if self._has_receiver:
                await self._wait_for_end()
                await asyncio.sleep(0)  # it needs a turn to take them
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
            async with asyncio.timeout(grace):
                while not self._over:
                    results: list[Out] = []
                    with contextlib.suppress(Exception):  # nobody is left who could handle it
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
        try:
            if not self._done:
                await self._stop()
        finally:
            self._give_back()

    def _idle_seconds(self) -> float:
        """Seconds since the stream was used; 0 while the function has events to work on."""
        sent, handled = self._progress()
        worked, self._worked = self._worked, sent != handled
        if worked or self._worked:
            self._touch()  # its time begins when the work is seen to be done
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
        if not self._over:
            warnings.warn(
                f"stream `{self.name}` was never closed; use `async with`, or `await aclose()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            # Garbage is collected in any thread; the loop, or the worker, may have gone before.
            with contextlib.suppress(VeloError, RuntimeError):
                self._loop.call_soon_threadsafe(self._canceller)
        self._give_back()
