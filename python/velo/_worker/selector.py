"""The selector of a worker's event loop: it looks at the rings before it asks the system."""

from __future__ import annotations

import selectors
from collections.abc import Callable

from velo import _core

# While the loop has other things to do, descriptors are looked at every so many times.
_POLL_EVERY = 16


class LinkSelector(selectors.DefaultSelector):
    """Calls `on_ready` when streams changed, spinning for a short while where that pays.

    The doorbells are armed only when the loop is about to sleep, so that a busy link costs no
    system call on either side.
    """

    def __init__(self, watch: _core.LinkWatch, on_ready: Callable[[], None]) -> None:
        super().__init__()
        self._watch = watch
        self._on_ready = on_ready
        self._until_poll = _POLL_EVERY

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for descriptors, and for streams."""
        may_sleep = timeout is None or timeout > 0
        if self._watch.look() if may_sleep else self._watch.ready():
            self._on_ready()
        elif may_sleep:
            if not self._watch.arm():
                events = super().select(timeout)
                self._watch.disarm()
                if self._watch.ready():
                    self._on_ready()
                return events
            self._watch.disarm()
            self._on_ready()
        self._until_poll -= 1
        if self._until_poll > 0:
            return []
        self._until_poll = _POLL_EVERY
        return super().select(0)
