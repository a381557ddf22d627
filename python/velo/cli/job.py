"""One run: from the reader through the streams to the writer. Knows nothing of options."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import click

from velo import Stream, StreamFn, _core
from velo._api.source import Batches
from velo.cli.counting import MOST_PENDING, Counted
from velo.cli.errors import Failure
from velo.cli.event_lines import EventLines
from velo.cli.health import Sample
from velo.cli.keys import Keys
from velo.cli.progress import Progress, Tally
from velo.cli.reading import Reader
from velo.cli.signals import Signals
from velo.cli.text import inline
from velo.cli.writing import Writer
from velo.errors import EventTooLarge, JournalFull, StreamClosed

__all__ = ["Job"]

# The seconds that `finally` blocks may take once the streams are cancelled.
_LAST = 1.0
# The same after a second signal.
_AT_ONCE = 0.25
# The most results that are taken at a time.
_MANY = 1024


class Job:
    """Runs all events of a reader through one stream, or one stream per key.

    Args:
        fn: The function.
        keys: Gives the key of each event; None: all events belong to one stream.
        writer: Writes the results. If it has those of an earlier run, the streams end only at the
            end of the input: anything that stops the run before that cancels them, so that they
            yield only the results of an uninterrupted run.
        strict: Whether the first bad line, or result that cannot be written, ends the run.
        drain: The seconds that the streams may take to handle the events they have, after a
            signal.

    Attributes:
        signal: The signal that ended the run, if one did.
        place: The event that a failed function took last, in words; None if no function has
            failed, or the event is not known.

    """

    def __init__(
        self,
        fn: StreamFn[Any, Any],
        keys: Keys | None,
        writer: Writer,
        *,
        strict: bool = False,
        drain: float = 3.0,
    ) -> None:
        self.signal: signal.Signals | None = None
        self.place: str | None = None
        self.fn = Counted(fn)
        self._keys = keys
        self._writer = writer
        self._written = writer.written
        self._strict = strict
        self._drain = drain
        self._tally = Tally()
        ahead = 4 * fn.config.buffer
        self._event_lines = EventLines(ahead if keys is None else max(ahead, 2 * MOST_PENDING))
        self._reader: Reader | None = None
        self._failed: click.ClickException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work_task: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        # The number of the event that could not be sent, from 0.
        self._unsent: int | None = None

    def tally(self) -> Tally:
        """Return the current counts."""
        tally = self._tally
        tally.results = self._writer.count
        tally.events = self.fn.handled()
        tally.streams, tally.opened = self.fn.count()
        tally.workers = max(tally.workers, _workers(self._loop))
        return tally

    def sample(self) -> Sample:
        """Say how far the run is, for probes."""
        tally = self.tally()
        return Sample(
            time.monotonic(),
            reading=self._reader is not None and self._failed is None,
            stopping=self.signal is not None,
            pending=tally.read - tally.events,
            moved=(tally.read, tally.events, tally.results),
        )

    async def run(self, reader: Reader, progress: Progress, signals: Signals) -> None:
        """Work until the input ends, a signal comes, or something fails.

        The results until then are written in each case, unless the output takes no more.

        Raises:
            click.ClickException: When the input or the output fails, or, if strict, a line is bad.
            Exception: What the function raises.

        """
        self._reader = reader
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        bursts = self._bursts(reader, progress)
        self._work_task = work = self._loop.create_task(self._work(bursts), name="velo run")
        signals.bind(self._loop, self._on_signal, self._drain)
        self._writer.on_failure = work.cancel  # the next result may be long in coming
        self._writer.watch()
        try:
            await work
        except asyncio.CancelledError:
            if self.signal is None and self._writer.failed is None:
                raise
        except click.ClickException:
            raise
        except Exception as error:
            self._find_place(error)
            raise
        except _Unfinished:
            pass  # `_failed` says why
        finally:
            self._writer.on_failure = None
            await self._finish()
            self.tally()  # the workers, while they can be counted
            self._loop = None
        if self._failed is None:
            self._failed = self._writer.failed
        if self._failed is not None:
            raise self._failed
        if self._written is not None and self.signal is None:
            self._written.check_end()

    async def _finish(self) -> None:
        """Write the remaining results; after a signal, within a bounded time."""
        assert self._loop is not None
        self._work_task = work = self._loop.create_task(self._writer.close(), name="velo run end")
        try:
            await work
        except click.ClickException as error:
            self._failed = self._failed or error
        except asyncio.CancelledError:
            if self.signal is None:
                raise
            self._failed = self._failed or self._writer.give_up()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._loop is None or self._reader is None or self._progress is None:
            return
        if self.signal is not None:
            self._cancel(0.0)
            self._cancel(_AT_ONCE)
            self._cancel(2 * _AT_ONCE)
            return
        self.signal = number
        self._reader.stop()
        if self._written is not None:
            self._cancel(0.0)
            self._cancel(_LAST)
            self._progress.say("stopping; `--resume` goes on from here")
            return
        self._cancel(self._drain)
        self._cancel(self._drain + _LAST)
        self._progress.say(
            "stopping: writing the results of what was read (once more: stop at once)"
        )

    def _cancel(self, seconds: float) -> None:
        """Cancel what is waited for then."""
        assert self._loop is not None
        self._loop.call_later(seconds, lambda: self._work_task and self._work_task.cancel())

    async def _bursts(self, reader: Reader, progress: Progress) -> AsyncGenerator[list[Any], None]:
        """Yield events; end, rather than raise, when no more can be had.

        An exception here would cancel the streams, and lose the results that they have not yielded
        yet. Only a run that can be resumed wants that.
        """
        tally = self._tally
        try:
            async with contextlib.aclosing(reader.bursts()) as bursts:
                async for burst in bursts:
                    tally.position = burst.position
                    tally.read += len(burst.events)
                    self._event_lines.add(burst)
                    yield burst.events
                    for line in burst.bad:
                        tally.bad += 1
                        if self._strict:
                            raise Failure(f"{line}; stopped, as `--strict` asks")
                        progress.bad(line)
            for name, (events, bad) in reader.counts.items():
                if bad and not events and self.signal is None:
                    lines = "its only line was" if bad == 1 else f"all of its {bad:,} lines were"
                    raise Failure(f"{name} gave no event: {lines} skipped")
        except click.ClickException as error:
            self._failed = error
            if self._written is not None:
                raise _Unfinished from None

    async def _work(self, bursts: AsyncGenerator[list[Any], None]) -> None:
        async with contextlib.aclosing(bursts):
            if self._keys is None:
                await self._one_stream(bursts)
            else:
                await self._by_key(bursts, self._keys)

    async def _by_key(self, bursts: AsyncIterator[list[Any]], keys: Keys) -> None:
        writer = self._writer
        async with contextlib.aclosing(self.fn.by_key(Batches(bursts), keys)) as keyed:
            async for key, result in keyed:
                self._write(result, key)
                if writer.full:
                    await writer.room()

    async def _one_stream(self, bursts: AsyncIterator[list[Any]]) -> None:
        writer = self._writer
        async with self.fn.open() as stream:
            sender = asyncio.create_task(self._send(stream, bursts), name="velo run sender")
            try:
                while True:
                    try:
                        results = await stream.recv_batch(_MANY)
                    except StreamClosed:
                        break
                    for result in results:
                        self._write(result)
                    if writer.full:
                        await writer.room()
            finally:
                sender.cancel()
                await asyncio.wait([sender])
            if not sender.cancelled():
                sender.result()

    async def _send(self, stream: Stream[Any, Any], bursts: AsyncIterator[list[Any]]) -> None:
        try:
            async for burst in bursts:
                await stream.send_batch(burst)
            await stream.end()
        except StreamClosed:
            pass  # the function has ended: its results say how
        except asyncio.CancelledError:
            raise
        except BaseException:
            # No further event comes, and no end: the task that receives would wait for ever.
            self._unsent = stream._progress()[0]
            stream._cancel()
            raise

    def _write(self, result: Any, key: Any = None) -> None:
        try:
            self._writer.write(result, key)
        except TypeError as error:
            which = "" if self._keys is None else f" of key {key!r}"
            line = self._writer.count + self._tally.lost + 1
            why = f"result {line:,}{which} cannot be written: {error}"
            if self._strict:
                raise Failure(f"{why}; stopped, as `--strict` asks") from None
            self._tally.lost += 1
            assert self._progress is not None
            self._progress.lost(inline(why))

    def _find_place(self, error: Exception) -> None:
        """Note the event that could not be sent, or that the failed function took last."""
        if self._keys is not None:
            found = self._find_place_of_key(self._keys, error)
        elif self._unsent is not None:
            found = self._unsent + 1, self._event_lines.of_event(self._unsent)
        else:
            number = self.fn.streams.taken
            found = (number, self._event_lines.of_event(number - 1)) if number else None
        if found is not None:
            number, line = found
            self.place = f"event {number:,}" + ("" if line is None else f", {line}")

    def _find_place_of_key(self, keys: Keys, error: Exception) -> tuple[int, str | None] | None:
        failed = None if self.fn.table is None else self.fn.table.failed_at
        if failed is None:
            return None
        key, number, behind = failed
        event, line = self._event_lines.of_key(keys, key, behind)
        if isinstance(error, EventTooLarge | JournalFull):
            number = event or 0  # an event of the input that has not reached the function
        return (number, line) if number else None


class _Unfinished(Exception):
    """Ends the iteration over events before the end of the input."""


def _workers(loop: asyncio.AbstractEventLoop | None) -> int:
    if loop is None or not _core.PROCESS_MODE:
        return 0
    from velo._process import clients

    return clients.workers_of(loop)
