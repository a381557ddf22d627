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

    Attributes:
        watch: What looks at the links, and sleeps on their doorbells.

    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` when streams changed."""
        super().__init__()
        self.watch = _core.LinkWatch(self.fileno())
        self._on_ready = on_ready
        self._until_poll = _POLL_EVERY

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for descriptors, and for streams."""
        if timeout is None or timeout > 0:
            if not self.watch.look():
                others = self.watch.sleep(timeout)
                if self.watch.ready():
                    self._on_ready()
                return super().select(0) if others else []
            self._on_ready()
        elif self.watch.ready():
            self._on_ready()
        self._until_poll -= 1
        if self._until_poll > 0:
            return []
        self._until_poll = _POLL_EVERY
        return super().select(0)
