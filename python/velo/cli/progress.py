"""Shows the progress of a run: a live line on a terminal, bad lines, a summary; all on stderr."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from velo.cli.outlet import Outlet
from velo.cli.text import block

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

__all__ = ["Progress", "Tally"]

# The rate on the live line is the rate of these last seconds.
_WINDOW = 2.0
_PER_SECOND = 8
# The seconds after which the live line estimates the remaining time.
_SOON = 1.0
# The most bytes of messages that wait for a reader of stderr; more are dropped.
_MOST = 256 * 1024
# The seconds that the end of the run waits for that reader.
_LAST = 1.0


@dataclass
class Tally:
    """The counts of a run so far.

    Attributes:
        read: Events that were read.
        events: Events that a function has handled.
        lost: Results that could not be written.
        dead_letters: Records that went to the dead letters.
        lag: Records of the sources that were not read yet; None: not known.
        epoch: The number of the last tick of the checkpoint; None without a checkpoint.
        age: The seconds since that tick.

    """

    read: int = 0
    events: int = 0
    results: int = 0
    lost: int = 0
    bad: int = 0
    streams: int = 0
    opened: int = 0
    workers: int = 0
    position: int = 0
    dead_letters: int = 0
    lag: int | None = None
    epoch: int | None = None
    age: float = 0.0


class Progress:
    """The messages and the live line for the user at the terminal.

    Args:
        tally: The counts to show. Another thread reads them and never changes them.
        size: The value of `tally.position` at the end of the input; None if it is not known.
        reports: The number of bad lines to report one by one.
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
        self._reported = self._lost = 0
        self._live = live and sys.stderr.isatty()
        self._console: Console | None = None
        # The reader of stderr may be slow, and the event loop does not wait for it.
        self._outlet = Outlet(io.FileIO(2, "wb", closefd=False), 2, name="velo run messages")
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

        screen = _Screen(self._outlet)
        self._console = Console(file=screen, force_terminal=True, highlight=False, emoji=False)
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
        """Print a line above the live one. Any thread may call it."""
        message = f"velo: {block(message)}"
        if (console := self._console) is not None:
            console.print(message, markup=False, soft_wrap=True)
        else:
            self._print(message)

    def bad(self, line: object) -> None:
        """Report a bad line, up to the number of reports."""
        self._reported += 1
        if self._reported <= self._reports:
            self.say(f"{line}; skipped")
        elif self._reports and self._reported == self._reports + 1:
            self.say("more lines were skipped; they are counted (`--reports N` shows more)")

    def lost(self, why: str) -> None:
        """Report a result that cannot be written, up to the number of reports."""
        self._lost += 1
        if self._lost <= self._reports:
            self.say(f"{why}; left out")
        elif self._reports and self._lost == self._reports + 1:
            self.say("more results were left out; they are counted (`--reports N` shows more)")

    def summary(self, how: str | None = None) -> None:
        """Print the summary, with the reason of the end if the input did not end."""
        tally, seconds = self._tally(), time.monotonic() - self._started
        rate = round(tally.events / seconds) if seconds else 0
        parts = [
            f"{_count(tally.events, 'event')} in {seconds:.1f} s ({rate:,}/s)",
            _count(tally.opened, "stream"),
            _count(tally.results, "result"),
        ]
        if tally.bad:
            parts.append(f"{tally.bad:,} skipped")
        if tally.dead_letters:
            parts.append(_count(tally.dead_letters, "dead letter"))
        if tally.lag is not None:
            parts.append(f"lag {tally.lag:,}")
        if tally.epoch is not None:
            parts.append(f"epoch {tally.epoch:,}")
        if tally.lost:
            parts.append(f"{_count(tally.lost, 'result')} left out")
        if (unused := tally.read - tally.events) > 0:
            parts.append(f"{unused:,} more read and not worked on")
        self._print((f"{how}: " if how else "") + ", ".join(parts))
        self._outlet.flush(_LAST)

    def abandon(self) -> None:
        """Leave the terminal as it was, before the process is ended by force."""
        if self._console is not None:
            self._outlet.put(b"\x1b[?25h\r\x1b[K")
        self._outlet.put(b"velo: stopped at once\n")
        self._outlet.flush(0.1)

    def _print(self, line: str) -> None:
        # A run whose stderr has lost its reader goes on, and ends well.
        if self._outlet.size < _MOST:
            self._outlet.put(f"{line}\n".encode(errors="backslashreplace"))

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
        if tally.lag is not None:
            figures.append((f"{tally.lag:,}", "behind"))
        if tally.epoch is not None:
            figures.append((f"{tally.epoch:,}", f"epoch, {tally.age:.0f} s old"))
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, (value, unit) in enumerate(figures):
            text.append("  " if number else "").append(value, "bold").append(f" {unit}", "dim")
        row: list[Any] = [text]
        spent = now - self._started
        clock = _clock(spent)
        if self._size:
            row.insert(0, ProgressBar(total=self._size, completed=tally.position, width=6))
            # Events that were read and are not handled yet count as not done.
            done = tally.position / self._size * (tally.events / tally.read if tally.read else 0)
            done = min(done, 1.0)
            if spent > _SOON and done > 0:
                clock = f"{_clock(spent / done - spent)} left"
            clock = f"{done:.0%} {clock}"
        else:
            row.insert(0, self._spinner(Spinner))
        row.append(Text(clock, style="dim"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_row(*row)
        return table

    def _spinner(self, make: Any) -> Any:
        # One object for the whole run: it counts its frames from its first showing.
        if not hasattr(self, "_spinning"):
            self._spinning = make("dots")
        return self._spinning


class _Screen(io.TextIOBase, IO[str]):
    """The file that rich writes to."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def write(self, text: str) -> int:
        if self._outlet.size < _MOST:
            self._outlet.put(text.encode(errors="backslashreplace"))
        return len(text)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stderr.encoding


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02}"
