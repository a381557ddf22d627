"""One run: from the reader through the streams to the writer. Knows nothing of options."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, cast

import click

from velo import Stream, StreamFn
from velo.cli.errors import Failure
from velo.cli.progress import Progress, Tally
from velo.cli.reading import Reader
from velo.cli.writing import Writer

__all__ = ["Counted", "Job"]

# How many seconds the streams may go on with what they have, after Ctrl-C, and how many more their
# `finally` blocks may take once they are cancelled.
_GRACE = 3.0
_LAST = 1.0
# How many seconds they may take when there was a second Ctrl-C.
_AT_ONCE = 0.25


class Counted(StreamFn[Any, Any]):
    """A stream function that knows how many of its streams are open."""

    def __init__(self, fn: StreamFn[Any, Any]) -> None:
        super().__init__(fn._function, fn.config)
        self.opened = 0
        self.now_open = 0

    async def _open_in(self, release: Callable[[], None]) -> Stream[Any, Any]:
        def give_back() -> None:
            self.now_open -= 1
            release()

        self.opened += 1
        self.now_open += 1
        return await super()._open_in(give_back)


class Job:
    """Runs all events of a reader through one stream, or one stream per key.

    Attributes:
        signal: The signal that ended it, if one did.

    """

    def __init__(
        self,
        fn: StreamFn[Any, Any],
        key: str | None,
        writer: Writer,
        *,
        strict: bool,
    ) -> None:
        self.signal: signal.Signals | None = None
        self._fn = Counted(fn)
        self._key = key
        self._writer = writer
        self._strict = strict
        self._tally = Tally()
        self._reader: Reader | None = None
        self._failed: click.ClickException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def tally(self) -> Tally:
        """Return the counts as they stand."""
        tally = self._tally
        tally.results = self._writer.count
        tally.streams, tally.opened = self._fn.now_open, self._fn.opened
        tally.workers = max(tally.workers, _workers(self._loop))
        return tally

    async def run(self, reader: Reader, progress: Progress) -> None:
        """Work until the input ends, a signal comes, or something fails.

        What was done until then has been given to the writer in each case.

        Raises:
            click.ClickException: When the input or the output fails, or, if strict, a line is bad.
            Exception: What the function raises.

        """
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        work = self._loop.create_task(self._work(self._events(reader, progress)), name="velo run")
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal, number, work, progress)
        try:
            await work
        except asyncio.CancelledError:
            if self.signal is None:
                raise
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.remove_signal_handler(number)
            self.tally()  # the workers, while they can be counted
            self._loop = None
        if self._failed is not None:
            raise self._failed

    def _on_signal(
        self, number: signal.Signals, work: asyncio.Task[None], progress: Progress
    ) -> None:
        assert self._loop is not None
        if self.signal is not None:
            work.cancel()
            self._loop.call_later(_AT_ONCE, work.cancel)
            return
        self.signal = number
        assert self._reader is not None
        self._reader.stop()
        self._loop.call_later(_GRACE, work.cancel)
        self._loop.call_later(_GRACE + _LAST, work.cancel)
        progress.say("stopping: writing the results of what was read (once more: stop at once)")

    async def _events(self, reader: Reader, progress: Progress) -> AsyncIterator[Any]:
        """Yield events; end, rather than raise, when no more can be had.

        An exception here would cancel the streams, and lose the results that are on their way.
        """
        tally = self._tally
        try:
            async with contextlib.aclosing(reader.bursts()) as bursts:
                async for burst in bursts:
                    tally.position = burst.position
                    for event in burst.events:
                        tally.events += 1
                        yield event
                    for line in burst.bad:
                        tally.bad += 1
                        if self._strict:
                            self._failed = Failure(f"{line}; stopped, as `--strict` asks")
                            return
                        progress.bad(line)
        except click.ClickException as error:
            self._failed = error

    async def _work(self, events: AsyncIterator[Any]) -> None:
        write = self._writer.write
        if self._key is not None:
            name = self._key
            keyed = self._fn.keyed(events, key=lambda event: event[name])
            async with contextlib.aclosing(keyed):
                async for key, result in keyed:
                    write({"key": key, "result": result})
            return
        async with self._fn.open() as stream:
            # Closed before the stream is: its sender must not find a stream that was cancelled.
            feed = cast(AsyncGenerator[Any, None], stream.feed(events))
            async with contextlib.aclosing(feed):
                async for result in feed:
                    write(result)
            await stream.end()
            async for result in stream:
                write(result)


def _workers(loop: asyncio.AbstractEventLoop | None) -> int:
    from velo import _client

    client = _client._clients.get(loop) if loop is not None else None
    return len(client._links) if client is not None else 0
