"""Shows how a run goes: a live line on a terminal, bad lines, a summary. Writes only to stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

__all__ = ["Progress", "Tally"]

# The rate that is shown is that of so many seconds.
_WINDOW = 2.0
_PER_SECOND = 8


@dataclass
class Tally:
    """What a run has done so far."""

    events: int = 0
    results: int = 0
    bad: int = 0
    streams: int = 0
    opened: int = 0
    workers: int = 0
    position: int = 0


class Progress:
    """What the person at the terminal sees.

    Args:
        tally: The counts to show. They are looked at, never changed, from another thread.
        size: What `tally.position` will get to; None if nobody knows.
        reports: How many bad lines to report one by one.
        live: Whether to show the live line, where stderr is a terminal.

    """

    def __init__(
        self,
        tally: Callable[[], Tally],
        *,
        size: int | None,
        reports: int,
        live: bool,
    ) -> None:
        self._tally = tally
        self._size = size
        self._reports = reports
        self._reported = 0
        self._live = live and sys.stderr.isatty()
        self._console: Console | None = None
        self._started = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._started, 0)])

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show the live line while the block runs."""
        if not self._live:
            yield
            return
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with live:
                yield
        finally:
            self._console = None

    def say(self, message: str) -> None:
        """Print a line above the live one."""
        if self._console is not None:
            self._console.print(f"velo: {message}", markup=False, soft_wrap=True)
        else:
            _print(f"velo: {message}")

    def bad(self, line: object) -> None:
        """Report a bad line, unless there were many."""
        self._reported += 1
        if self._reported <= self._reports:
            self.say(f"{line}; skipped")
        elif self._reports and self._reported == self._reports + 1:
            self.say("more lines were skipped; they are counted (`--reports N` shows more)")

    def summary(self, how: str | None = None) -> None:
        """Print the one line that tells what was done, and how it ended unless at its end."""
        tally, seconds = self._tally(), time.monotonic() - self._started
        rate = round(tally.events / seconds) if seconds else 0
        parts = [
            f"{_count(tally.events, 'event')} in {seconds:.1f} s ({rate:,}/s)",
            _count(tally.opened, "stream"),
            _count(tally.results, "result"),
        ]
        if tally.bad:
            parts.append(f"{tally.bad:,} skipped")
        _print((f"{how}: " if how else "") + ", ".join(parts))

    def _rate(self, now: float, events: int) -> float:
        self._samples.append((now, events))
        while len(self._samples) > 2 and self._samples[0][0] < now - _WINDOW:
            self._samples.popleft()
        then, before = self._samples[0]
        return (events - before) / (now - then) if now > then else 0.0

    def _render(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        tally, now = self._tally(), time.monotonic()
        figures: list[tuple[str, str]] = [
            (f"{tally.events:,}", "events"),
            (f"{self._rate(now, tally.events):,.0f}", "events/s"),
            (f"{tally.streams:,}", "stream" if tally.streams == 1 else "streams"),
        ]
        if tally.workers:
            figures.append((f"{tally.workers}", "worker" if tally.workers == 1 else "workers"))
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, (value, unit) in enumerate(figures):
            text.append("  " if number else "").append(value, "bold").append(f" {unit}", "dim")
        row: list[Any] = [text]
        if self._size:
            row.insert(0, ProgressBar(total=self._size, completed=tally.position, width=10))
        else:
            row.insert(0, self._spinner(Spinner))
        row.append(Text(_clock(now - self._started), style="dim"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_row(*row)
        return table

    def _spinner(self, make: Any) -> Any:
        # One object for the whole run: it counts its frames from its first showing.
        if not hasattr(self, "_spinning"):
            self._spinning = make("dots")
        return self._spinning


def _print(line: str) -> None:
    # The work goes on, and ends well, when nobody reads stderr any more.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02}"
