"""Reads the inputs of `velo run` in a thread: the event loop never waits for them.

Events travel to the loop in bursts: as many as one read brought, so that a slow pipe's events
arrive at once and a fast file's many at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace

import click

from velo.cli.decoding import Decoder
from velo.cli.errors import Failure
from velo.cli.following import Followed
from velo.cli.inputs import DAMAGED, Input, reason
from velo.cli.parsing import Burst, Rules
from velo.cli.wake import Wake

__all__ = ["Reader"]

# The most bursts that wait for the loop: enough to keep it busy, and few to drop at the end.
_AHEAD = 4
# The pause, in seconds, before a followed file without new bytes is read again. It is short after
# new bytes, and grows while there are none. One read takes two system calls.
_SHORTEST, _LONGEST = 0.005, 0.1


class _Stopped(Exception):
    """The run takes no more events."""


class Reader:
    """A thread that reads and parses, and the event loop's end of it.

    The thread is a daemon: while it is blocked in a file, the program can still end.

    Args:
        inputs: The inputs to read, one after the other; side by side if they are followed.
        rules: How a line becomes an event.
        follow: Whether to wait for more at the end of a file.
        limit: The most events to take; None: all.
        strict: Whether to read no further than the first bad line.

    Attributes:
        counts: The numbers of events and of bad lines of each input, by its name.

    """

    def __init__(
        self,
        inputs: Sequence[Input],
        rules: Rules,
        *,
        follow: bool = False,
        limit: int | None = None,
        strict: bool = False,
    ) -> None:
        self._inputs = inputs
        self._rules = rules
        self._follow = follow
        self._left = limit
        self._strict = strict
        # The numbers of events and of bad lines of each input, by its name.
        self.counts: dict[str, list[int]] = {}
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Burst | click.ClickException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        self._stopped = self._abandoned = self._hinted = False
        # Interrupts the thread's waits. Never closed: the thread may outlive everything else.
        self._wake = Wake()

    async def bursts(self) -> AsyncGenerator[Burst, None]:
        """Yield the bursts that were read, until the end of the inputs or `stop`.

        Raises:
            Failure: When an input cannot be read any further.
            click.UsageError: When a CSV header is unusable.

        """
        threading.Thread(target=self._work, name="velo run reader", daemon=True).start()
        try:
            while (item := await self._queue.get()) is not None and not self._abandoned:
                self._room.release()
                if isinstance(item, click.ClickException):
                    raise item
                yield item
        finally:
            self._abandon()

    def stop(self) -> None:
        """Read no further.

        Events that were read from a pipe still come, because no other program can read them again.
        Events of files that were not taken yet are dropped.
        """
        self._stopped = True
        self._wake.ring()
        if all(input.pipe is None for input in self._inputs):
            self._abandon()

    def _abandon(self) -> None:
        self._stopped = self._abandoned = True
        self._wake.ring()
        self._queue.put_nowait(None)
        self._room.release()

    def _work(self) -> None:
        end: click.ClickException | None = None
        try:
            if self._follow:
                self._follow_all()
            else:
                self._read_all()
        except click.ClickException as error:
            end = error
        except _Stopped:
            pass
        except Exception as error:  # a task that waits for events has to learn that none will come
            end = Failure(f"reading the input failed: {type(error).__name__}: {error}")
        with contextlib.suppress(_Stopped):
            self._hand_over(end)

    def _read_all(self) -> None:
        before = 0
        for input in self._inputs:
            parser, decoder = input.parser(self._rules), input.decoder()
            why = None
            try:
                with contextlib.closing(input.open()) as opened:
                    while True:
                        self._wait(None, input.pipe)
                        data = opened.read()
                        if data is None:
                            continue  # a pipe that does not block, and had nothing after all
                        if not data:
                            break
                        burst = parser.feed(decoder.feed(data))
                        self._emit(burst, input, decoder, before + opened.position())
                    before += opened.position()
            except DAMAGED as error:
                why = f"cannot read {input.name} any further: {reason(error)}"
            self._emit(parser.feed(decoder.feed(b"", last=True)), input, decoder, before)
            if why is not None:
                raise Failure(why)  # what is behind the last whole line may be a part of a value
            self._emit(parser.end(), input, decoder, before)

    def _follow_all(self) -> None:
        files = [_Following(input, self._rules) for input in self._inputs]
        pause = _SHORTEST
        while True:
            news = False
            for file in files:
                for burst in file.news():
                    news = True
                    self._emit(burst, file.input, file.decoder, 0)
            pause = _SHORTEST if news else min(2 * pause, _LONGEST)
            self._wait(0 if news else pause, None)

    def _wait(self, seconds: float | None, pipe: int | None) -> None:
        """Wait for a while, or until a pipe has bytes; a file is always ready."""
        if pipe is not None or seconds:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if pipe is not None:
                poll.register(pipe, select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
        if self._stopped:
            raise _Stopped

    def _emit(self, burst: Burst, input: Input, decoder: Decoder, position: int) -> None:
        if decoder.encoding != "utf-8":
            for at, line in enumerate(burst.bad):
                if line.why.startswith("not UTF-8"):
                    burst.bad[at] = replace(line, why=f"not {decoder.encoding}")
        elif burst.bad and not self._hinted:
            self._hint(burst, input)
        if self._strict and burst.bad:
            burst.cut_at_bad()
        if self._left is not None:
            burst.cut(self._left)
            self._left -= len(burst.events)
        burst.position = position
        burst.path = input.path
        counts = self.counts.setdefault(input.name, [0, 0])
        counts[0] += len(burst.events)
        counts[1] += len(burst.bad)
        if burst.events or burst.bad:
            self._hand_over(burst)
        if self._left == 0 or (self._strict and burst.bad):
            raise _Stopped

    def _hint(self, burst: Burst, input: Input) -> None:
        """Print once how to read an input that is not UTF-8, or standard input that is no JSON."""
        guessed = input.path == "-" and not input.said and not any(self.counts.get(input.name, ()))
        for at, line in enumerate(burst.bad):
            hint = ""
            if line.why.startswith("not UTF-8"):
                hint = "`--encoding latin-1`, say, reads what is none"
            elif guessed and not burst.events and line.why.startswith("not JSON"):
                hint = "standard input is NDJSON unless `--format csv`, say, is given"
            if hint:
                self._hinted = True
                burst.bad[at] = replace(line, why=f"{line.why} ({hint})")
                return

    def _hand_over(self, item: Burst | click.ClickException | None) -> None:
        if not self._abandoned:
            self._room.acquire()
        if self._abandoned:
            raise _Stopped
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:
            raise _Stopped from None  # the loop is closed: the run is over


class _Following:
    """A followed file and its parser."""

    def __init__(self, input: Input, rules: Rules) -> None:
        self.input = input
        self.decoder = input.decoder()
        self._file = Followed(input.path)
        self._parser = input.parser(rules, follow=True)

    def news(self) -> Iterator[Burst]:
        """Return the new events, of at most one read.

        Raises:
            Failure: When the file cannot be read.

        """
        try:
            data = self._file.read()
        except OSError as error:
            raise Failure(f"cannot read {self.input.name}: {reason(error)}") from None
        if data is None:
            yield self._parser.feed(self.decoder.feed(b"", last=True))
            yield self._parser.end()
            self._parser.restart()
            self.decoder = self.input.decoder()
        elif data:
            yield self._parser.feed(self.decoder.feed(data))
