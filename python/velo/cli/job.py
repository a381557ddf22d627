"""One run: from the reader through the streams to the writer. Knows nothing of options."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from operator import itemgetter
from typing import Any

import click

from velo import Stream, StreamFn
from velo._api.opener import StreamOpener
from velo.cli.errors import Failure
from velo.cli.progress import Progress, Tally
from velo.cli.reading import Reader
from velo.cli.resuming import Written
from velo.cli.signals import leave_to_children
from velo.cli.writing import Writer
from velo.errors import StreamClosed

__all__ = ["Counted", "Job"]

# How many seconds `finally` blocks may take once the streams are cancelled.
_LAST = 1.0
# How many, when there was a second signal.
_AT_ONCE = 0.25
# How many results are taken at a time.
_MANY = 1024


class Counted(StreamFn[Any, Any]):
    """A stream function that knows how many of its streams are open."""

    def __init__(self, fn: StreamFn[Any, Any]) -> None:
        super().__init__(fn._function, fn.config)
        self._counting = self._opener = _CountingOpener(self._spec)

    @property
    def opened(self) -> int:
        """How many streams were opened."""
        return self._counting.opened

    @property
    def now_open(self) -> int:
        """How many streams are open."""
        return self._counting.now_open


class _CountingOpener(StreamOpener[Any, Any]):
    opened = now_open = 0

    async def open_with(self, release: Callable[[], None]) -> Stream[Any, Any]:
        def give_back() -> None:
            self.now_open -= 1
            release()

        self.opened += 1
        self.now_open += 1
        return await super().open_with(give_back)


class Job:
    """Runs all events of a reader through one stream, or one stream per key.

    Args:
        fn: The function.
        key: The field whose value says which stream an event belongs to; None: there is one.
        writer: What takes the results.
        written: What an earlier run has written. Then the input has to be read to its end for the
            streams to end: whatever stops the run before that cancels them, so that they yield
            nothing which an uninterrupted run would not have.
        strict: Whether the first bad line ends the run.
        drain: How many seconds the streams may go on with what they have, after a signal.

    Attributes:
        signal: The signal that ended it, if one did.

    """

    def __init__(
        self,
        fn: StreamFn[Any, Any],
        key: str | None,
        writer: Writer,
        *,
        written: Written | None = None,
        strict: bool = False,
        drain: float = 3.0,
    ) -> None:
        self.signal: signal.Signals | None = None
        self.fn = Counted(fn)
        self._key = key
        self._writer = writer
        self._written = written
        self._strict = strict
        self._drain = drain
        self._tally = Tally()
        self._reader: Reader | None = None
        self._failed: click.ClickException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def tally(self) -> Tally:
        """Return the counts as they stand."""
        tally = self._tally
        tally.results = self._writer.count
        tally.streams, tally.opened = self.fn.now_open, self.fn.opened
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
        bursts = self._bursts(reader, progress)
        work = self._loop.create_task(self._work(bursts), name="velo run")
        leave_to_children()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal, number, work, progress)
        self._writer.on_failure = work.cancel  # the next result may be long in coming
        try:
            await work
        except asyncio.CancelledError:
            if self.signal is None and self._writer.failed is None:
                raise
        except _Unfinished:
            pass  # `_failed` says why
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.remove_signal_handler(number)
            self.tally()  # the workers, while they can be counted
            self._loop = None
        if self._failed is None:
            self._failed = self._writer.failed
        if self._failed is not None:
            raise self._failed
        if self._written is not None and self.signal is None:
            self._written.check_end()

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
        if self._written is not None:
            work.cancel()
            self._loop.call_later(_LAST, work.cancel)
            progress.say("stopping; `--resume` goes on from here")
            return
        self._loop.call_later(self._drain, work.cancel)
        self._loop.call_later(self._drain + _LAST, work.cancel)
        progress.say("stopping: writing the results of what was read (once more: stop at once)")

    async def _bursts(self, reader: Reader, progress: Progress) -> AsyncGenerator[list[Any], None]:
        """Yield events; end, rather than raise, when no more can be had.

        An exception here would cancel the streams, and lose the results that are on their way. A
        run that can be resumed wants just that.
        """
        tally = self._tally
        try:
            async with contextlib.aclosing(reader.bursts()) as bursts:
                async for burst in bursts:
                    tally.position = burst.position
                    yield burst.events
                    for line in burst.bad:
                        tally.bad += 1
                        if self._strict:
                            raise Failure(f"{line}; stopped, as `--strict` asks")
                        progress.bad(line)
        except click.ClickException as error:
            self._failed = error
            if self._written is not None:
                raise _Unfinished from None

    def _counted(self, events: list[Any]) -> Iterator[Any]:
        tally = self._tally
        for event in events:
            tally.events += 1
            yield event

    async def _work(self, bursts: AsyncGenerator[list[Any], None]) -> None:
        async with contextlib.aclosing(bursts):
            if self._key is None:
                await self._one_stream(bursts)
            else:
                await self._by_key(bursts, self._key)

    async def _by_key(self, bursts: AsyncIterator[list[Any]], name: str) -> None:
        async def events() -> AsyncGenerator[Any, None]:
            async for burst in bursts:
                for event in self._counted(burst):
                    yield event

        write = self._writer.write
        async with (
            contextlib.aclosing(events()) as source,
            contextlib.aclosing(self.fn.keyed(source, key=itemgetter(name))) as keyed,
        ):
            async for key, result in keyed:
                write(result, key)

    async def _one_stream(self, bursts: AsyncIterator[list[Any]]) -> None:
        write = self._writer.write
        async with self.fn.open() as stream:
            sender = asyncio.create_task(self._send(stream, bursts), name="velo run sender")
            try:
                while True:
                    try:
                        results = await stream.recv_batch(_MANY)
                    except StreamClosed:
                        break
                    for result in results:
                        write(result)
            finally:
                sender.cancel()
                await asyncio.wait([sender])
            if not sender.cancelled():
                sender.result()

    async def _send(self, stream: Stream[Any, Any], bursts: AsyncIterator[list[Any]]) -> None:
        try:
            async for burst in bursts:
                await stream.send_batch(self._counted(burst))
            await stream.end()
        except StreamClosed:
            pass  # the function has ended: its results say how
        except _Unfinished:
            stream._cancel()
            raise


class _Unfinished(Exception):
    """The input ended before its end."""


def _workers(loop: asyncio.AbstractEventLoop | None) -> int:
    from velo._process import clients

    return clients.workers_of(loop) if loop is not None else 0
