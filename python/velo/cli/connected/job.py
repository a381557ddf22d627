"""One run from sources to a sink: signals, figures, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping
from typing import Any

import click

from velo import StreamFn, _core
from velo._api.terms import Terms
from velo._diagnostics.source_figures import label_of, lag_of
from velo._diagnostics.waits import waits
from velo.cli.connected.reader_source import LineError
from velo.cli.connected.writer_sink import WriterSink
from velo.cli.errors import Failure
from velo.cli.health import Part, Sample
from velo.cli.progress import Progress, Tally
from velo.cli.signals import Signals
from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    PositionLost,
    Unreachable,
)

__all__ = ["ConnectedJob", "Refused"]

# Of a partition of which no record was read yet.
_NOTHING = (0, 0, False)

# The seconds that `finally` blocks may take once the streams are cancelled.
_LAST = 1.0
_AT_ONCE = 0.25
# The exit codes of sysexits.h.
_CODES = (
    (Unreachable, 69),
    (AuthenticationFailed, 77),
    (PermissionDenied, 77),
    (NoSuchTopic, 66),
    (PositionLost, 65),
)


class Refused(Failure):
    """A server or a file is missing, or refuses the run."""

    def __init__(self, error: ConnectError) -> None:
        super().__init__("\n".join([str(error), *getattr(error, "__notes__", ())]))
        self.exit_code = next(  # type: ignore[misc]
            (code for kind, code in _CODES if isinstance(error, kind)), 1
        )


class _Heard(logging.Handler):
    """Shows log records of connectors beside the live line."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(record.getMessage())


class ConnectedJob:
    """Runs the records of a source through a function, by key or as one stream, into a sink.

    Args:
        fn: The function.
        source: The source.
        key: As for `keyed`; None: there is one stream.
        sink: The sink.
        dead_letter: The sink of failed records; None: the first failed record ends the run.
        terms: `max_pending` and `retries`.
        drain: The seconds that the records that were read may take, after a signal.
        strict: Whether a record that cannot be decoded, or has no key, ends the run.
        checkpoint: The settings of `Connected.into` about the checkpoint; none without one.

    Attributes:
        signal: The signal that ended it, if one did.

    """

    def __init__(
        self,
        fn: StreamFn[Any, Any],
        source: Any,
        key: Any,
        sink: Any,
        *,
        dead_letter: Any,
        terms: Terms,
        drain: float,
        strict: bool = False,
        checkpoint: Mapping[str, Any],
    ) -> None:
        self.signal: signal.Signals | None = None
        self.fn = fn
        self._source = source
        self._sink = sink
        self._dead_letter = dead_letter
        self._terms = terms
        self._drain = drain
        self._strict = strict
        self._checkpoint = checkpoint
        # When the last tick was seen.
        self._ticked = 0.0
        if key is None:
            self._run = fn.over(source, max_pending=terms.max_pending)
        else:
            self._run = fn.keyed(source, key, max_pending=terms.max_pending)
        self._tally = Tally()
        self._work: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._progress: Progress | None = None

    def tally(self) -> Tally:
        """Return the current counts."""
        tally, figures, metrics = self._tally, self._run.figures, self.fn.metrics
        tally.read = figures.read - figures.bad
        tally.results = figures.results
        tally.bad = figures.dropped
        tally.dead_letters = figures.dead_letters
        if self._checkpoint:
            if tally.epoch != figures.epoch:
                self._ticked = time.monotonic()
            tally.epoch, tally.age = figures.epoch, time.monotonic() - self._ticked
        tally.events = min(tally.read, metrics.events)
        tally.streams, tally.opened = metrics.open, metrics.opened
        if hasattr(self._source, "lag") and self._loop is not None:
            tally.lag = sum(lag_of(self._source).values())
        if self._loop is not None and _core.PROCESS_MODE:
            from velo._process import clients

            tally.workers = max(tally.workers, clients.workers_of(self._loop))
        return tally

    def sample(self) -> Sample:
        """Say how far the run is, for probes."""
        figures, flows = self._run.figures, self._run._flows()
        lags = lag_of(self._source)
        parts = {
            label_of(partition): Part(*flows.get(partition, _NOTHING), lags.get(partition))
            for partition in {**flows, **lags}
        }
        return Sample(
            time.monotonic(),
            reading=self._run._is_reading,
            stopping=self.signal is not None,
            pending=sum(part.read - part.handled for part in parts.values()),
            moved=(figures.results, *((part.read, part.handled) for part in parts.values())),
            parts=parts,
            waits=waits(),
        )

    async def run(self, progress: Progress, signals: Signals) -> None:
        """Work until the source ends, a signal comes, or something fails.

        Raises:
            click.ClickException: When the source or the sink fails.
            Exception: What the function raises.

        """
        self._progress = progress
        self._loop = loop = asyncio.get_running_loop()
        terms = self._terms
        self._work = work = loop.create_task(
            self._run.into(
                self._sink,
                dead_letter=self._dead_letter,
                on_bad=self._on_bad,
                retries=terms.retries,
                drain=self._drain,
                **self._checkpoint,
            ),
            name="velo run",
        )
        heard = _Heard(progress)
        log = logging.getLogger("velo.connect")
        log.addHandler(heard)
        log.propagate = False
        signals.bind(loop, self._on_signal, self._drain)
        if isinstance(self._sink, WriterSink):
            self._sink.watch(work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            if isinstance(self._sink, WriterSink) and self._sink.failed is not None:
                raise self._sink.failed from None
            if self.signal is None:
                raise
        except ConnectError as error:
            raise Refused(error) from error
        except click.ClickException:
            raise
        finally:
            tally = self.tally()
            self._loop = None
            log.removeHandler(heard)
            log.propagate = True
        if self.signal is None and tally.bad and not tally.read:
            raise Failure(
                f"{self._source.name} gave no event: all of its {tally.bad:,} records were skipped"
            )

    def _on_bad(self, _key: Any, error: Exception) -> None:
        assert self._progress is not None
        what = f"there is no field {error}" if isinstance(error, KeyError) else str(error)
        notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("`key`")]
        if not isinstance(error, LineError):
            what = ", ".join([what, *notes])
        if self._strict:
            raise Failure(f"{what}; stopped, as `--strict` asks")
        self._progress.bad(what)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._loop is None or self._progress is None:
            return
        if self.signal is not None:
            for seconds in (0.0, _AT_ONCE, 2 * _AT_ONCE):
                self._cancel(seconds)
            return
        self.signal = number
        self._run.stop()
        self._cancel(self._drain)
        self._cancel(self._drain + _LAST)
        self._progress.say(
            "stopping: working on what was read, and committing it (once more: stop at once)"
        )

    def _cancel(self, seconds: float) -> None:
        assert self._loop is not None
        self._loop.call_later(seconds, lambda: self._work and self._work.cancel())
