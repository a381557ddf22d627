"""`progress=True`: shows how many events were taken from a source, in a terminal or a notebook."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from typing import Any, TypeVar

__all__ = ["shown"]

T = TypeVar("T")

# The seconds between two updates.
_EVERY = 0.1


def shown(events: Iterable[T] | AsyncIterable[T], name: str) -> Any:
    """Return the same source, which shows its progress while it is read.

    Args:
        events: The source.
        name: The name of the function that gets the events.

    """
    total = len(events) if isinstance(events, Sized) else None
    if isinstance(events, AsyncIterable):
        return _counted_async(events, _bar(name, total))
    return _counted(events, _bar(name, total))


def _counted(events: Iterable[T], bar: _Bar) -> Iterator[T]:
    try:
        for event in events:
            bar.step()
            yield event
        bar.complete = True
    finally:
        bar.close()


async def _counted_async(events: AsyncIterable[T], bar: _Bar) -> AsyncIterator[T]:
    try:
        async for event in events:
            bar.step()
            yield event
        bar.complete = True
    finally:
        bar.close()


def _bar(name: str, total: int | None) -> _Bar:
    return _InNotebook(name, total) if _is_notebook() else _InTerminal(name, total)


def _is_notebook() -> bool:
    if "ipykernel" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")


class _Bar:
    """Counts events, and shows the count now and then."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.count = 0
        self.complete = False
        self._began: float | None = None
        self._due = 0.0

    def step(self) -> None:
        """Count an event, which is about to be handed over."""
        self.count += 1
        now = time.monotonic()
        if now >= self._due:
            if self._began is None:
                self._began = now
                self.begin()
            self._due = now + _EVERY
            self.show()

    def close(self) -> None:
        """Show the last count."""
        if self._began is None:
            self._began = time.monotonic()
            self.begin()
        self.show()
        self.end()

    @property
    def text(self) -> str:
        """The count, and the rate so far."""
        passed = time.monotonic() - (self._began or time.monotonic())
        rate = f", {self.count / passed:,.0f} per second" if passed > _EVERY else ""
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.count:,}{of} events{rate}"

    def begin(self) -> None:
        """Show it for the first time."""

    def show(self) -> None:
        """Show the present count."""

    def end(self) -> None:
        """Leave what is shown last."""


class _InTerminal(_Bar):
    def begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(
            *columns, console=Console(stderr=True, emoji=False), auto_refresh=False
        )
        self._task = self._progress.add_task(self.name, total=self.total, text="")
        self._progress.start()

    def show(self) -> None:
        self._progress.update(self._task, completed=self.count, text=self.text)
        if self._progress.console.is_terminal:
            self._progress.refresh()

    def end(self) -> None:
        if self.complete:
            self._progress.update(self._task, total=self.count)
        self._progress.stop()


class _InNotebook(_Bar):
    def begin(self) -> None:
        notebook: Any = importlib.import_module("IPython.display")  # it has no types
        self._html = notebook.HTML
        self._display = notebook.display(self._html(""), display_id=True)

    def show(self) -> None:
        from html import escape

        attributes = "" if self.total is None else f'max="{self.total}" value="{self.count}"'
        if self.complete:
            attributes = 'max="1" value="1"'
        bar = f'<progress {attributes} style="width:240px;vertical-align:middle"></progress>'
        self._display.update(self._html(f"{escape(self.name)} {bar} {escape(self.text)}"))
